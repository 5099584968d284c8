"""The contract of every analysis in the table: what the command line, reports and the app rely on.

Each package's tests have an `examples.py` with `EXAMPLES`: command -> a function that returns synthetic results which
together show every claim on both sides of its rule, and in between.
"""

import ast
import sys
from dataclasses import fields
from importlib import import_module
from inspect import getdoc
from pathlib import Path

import pytest
from torch import Tensor

from probe.analyses import TABLE, analysis_of, settings_of
from probe.errors import UsageError
from probe.frame.analysis import Analysis, Facts, Need
from probe.frame.findings import FAILS, HOLDS, UNCLEAR, VERDICTS
from probe.frame.settings import Settings
from probe.saving.results import Result

ROOT = Path(__file__).parents[2]
NAMES = sorted(TABLE)
ALLOWED = {"probe.errors", "probe.frame.settings"}


def examples(name: str) -> list[Result]:
    """The synthetic results of an analysis."""
    package = TABLE[name].split(":")[0].removeprefix("probe.analyses.").split(".")[0]
    return import_module(f"tests.analyses.{package}.examples").EXAMPLES[name]()


def test_the_table_holds_every_analysis():
    found = {
        f"probe.{path.relative_to(ROOT).with_suffix('').as_posix().replace('/', '.')}"
        for path in (ROOT / "analyses").rglob("analysis.py")
    }
    assert {entry.split(":")[0] for entry in TABLE.values()} == found


@pytest.mark.parametrize("name", NAMES)
def test_settings_ask_a_question_and_document_every_field(name):
    kind = settings_of(name)
    assert issubclass(kind, Settings)
    question = (getdoc(kind) or "").splitlines()[0]
    assert question.endswith("?"), question
    for field in fields(kind):
        about = field.metadata.get("option") or field.metadata.get("given")
        assert about, f"{field.name} has no documentation"
        text = about if isinstance(about, str) else about.help
        assert text[0].isupper() and len(text) >= 10, f"{field.name}: {text!r}"
    assert {"quick", "report"} <= kind.presets.keys()
    for preset in kind.presets:
        needed = {each: "ioi" for each, option in kind.options().items() if option.argument}
        kind.of(preset, **needed)
    with pytest.raises(UsageError, match="--preset"):
        kind.of("unheard of")


@pytest.mark.parametrize("name", NAMES)
def test_settings_import_the_standard_library_alone(name):
    module = import_module(settings_of(name).__module__)
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        for imported in names:
            beside = imported.startswith("probe.analyses.") and imported.endswith(("settings", ".tasks"))
            own = imported in ALLOWED or beside
            assert own or imported.split(".")[0] in sys.stdlib_module_names, imported


@pytest.mark.parametrize("name", NAMES)
def test_an_analysis_has_a_need_and_a_plan(name):
    kind = analysis_of(name)
    assert issubclass(kind, Analysis) and kind.name == name
    needed = {each: "ioi" for each, option in settings_of(name).options().items() if option.argument}
    made = kind(settings_of(name).of(None, **needed))
    assert isinstance(made.need(), Need)
    if made.need() is not Need.NOTHING:
        with pytest.raises(UsageError, match="not applicable"):
            made.ready(None)
    assert callable(made.plan) and Facts.of(None).n_layers == 0


@pytest.mark.parametrize("name", NAMES)
def test_every_rule_is_seen_on_both_sides(name):
    claims = analysis_of(name).claims
    assert len({claim.name for claim in claims}) == len(claims)
    seen: dict[str, set[str]] = {claim.name: set() for claim in claims}
    for result in examples(name):
        for finding in result.findings():
            assert finding.verdict in VERDICTS and finding.source and finding.rule and finding.quantity
            seen[finding.name].add(finding.verdict)
    for claim, verdicts in seen.items():
        assert {HOLDS, FAILS, UNCLEAR} <= verdicts, f"{claim}: only {sorted(verdicts)}"


@pytest.mark.parametrize("name", NAMES)
def test_a_result_saves_and_loads_to_equality_and_shows_itself(name, tmp_path):
    result = examples(name)[0]
    assert Result.load(result.save(tmp_path / "run")) == result
    drawn = [plots for part in (result, *result.parts().values()) if (plots := part.figures())]
    assert len(result.to_df()) and drawn and result.plot() and result._repr_html_()
    assert all(isinstance(line, str) and line.strip() for line in result.summary())
    tables = result.tables()
    assert tables
    for table in tables.values():
        assert table.meaning.strip() and {column.name for column in table.columns} <= set(table.rows.columns)
        assert all(column.header.strip() for column in table.columns)
        for row in table.rows.to_dict("records"):
            assert all(isinstance(column.cell(row), str) for column in table.columns)


@pytest.mark.parametrize("name", NAMES)
def test_head_scores_have_units(name):
    for score, about in examples(name)[0].head_scores().items():
        assert score and isinstance(about.values, Tensor) and about.values.ndim == 2
        assert about.unit and about.sign and len(about.layers) == about.values.shape[0]
        assert about.per in ("head", "kv head")
