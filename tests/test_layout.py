"""Imports point one way between folders and rooms and run in no circle; names, links, and a stand-in for `kernels`."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import probe

ROOT = Path(__file__).parent.parent
ORDER = ("kernels", "probe", "analyses", "benchmarks", "app")
"""Each folder may import itself and those before it."""

ROOMS = {
    "interventions": ("frame",),
    "engine": ("interventions",),
    "patching": ("interventions", "engine"),
    "edges": ("interventions", "engine", "patching"),
    "doors": ("interventions", "engine"),
    "saving": ("figures", "frame"),
    "figures": ("saving", "frame"),
    "frame": ("saving", "engine"),
    "loading": ("saving",),
}
"""The rooms of probe/, each with the other rooms that it may import."""

BELOW_MODELS = ("interventions", "engine", "patching", "edges", "loading", "saving", "figures")
"""The rooms that `probe.models` stands on; they may name it in annotations alone."""

CIRCLES: dict[frozenset[str], str] = {}
"""Circles between modules that are allowed, each with its reason."""


def sources(folder: str) -> list[Path]:
    """The Python files of one folder, those behind links left to the folder they link to."""
    files = [path for path in sorted((ROOT / folder).rglob("*.py")) if "__pycache__" not in path.parts]
    if folder == "probe":
        files = [path for path in files if path.relative_to(ROOT / "probe").parts[0] not in ORDER]
    assert files, folder
    return files


def statements(tree: ast.AST, *, annotations: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements, in functions too; under `if TYPE_CHECKING:` only where `annotations` asks for them."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            yield from statements(ast.Module(node.body if annotations else node.orelse, []), annotations=annotations)
        else:
            yield from statements(node, annotations=annotations)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, *, annotations: bool = True) -> set[str]:
    """The modules and names that a file imports, in functions too."""
    found: set[str] = set()
    for node in statements(parsed(path.resolve()), annotations=annotations):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def module(path: Path) -> str:
    """The name under which a file is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("probe" if parts[0] != "probe" else "", *parts)).strip(".").removesuffix(".__init__")


@cache
def graph(*, annotations: bool = False) -> dict[str, set[str]]:
    """Each module of the project, with the modules of the project that it imports."""
    paths = {module(path): path for folder in ORDER for path in sources(folder)}
    found: dict[str, set[str]] = {}
    for name, path in paths.items():
        wanted = imports(path, annotations=annotations)
        found[name] = {each if each in paths else each.rpartition(".")[0] for each in wanted} & paths.keys() - {name}
    return found


def circles(of: dict[str, set[str]]) -> set[frozenset[str]]:
    """The strongly connected components of more than one module: modules that reach one another."""
    reached: dict[str, set[str]] = {}
    for start in of:
        seen, waiting = {start}, [start]
        while waiting:
            new = of[waiting.pop()] - seen
            seen |= new
            waiting += new
        reached[start] = seen
    groups = {frozenset(other for other in reached[name] if name in reached[other]) for name in of}
    return {group for group in groups if len(group) > 1}


def layer(module: str) -> str | None:
    """The folder that a module of this project belongs to; None for others."""
    parts = module.split(".")
    if parts[0] != "probe":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in ORDER else "probe"


@pytest.mark.parametrize("folder", ORDER)
def test_imports_point_one_way(folder):
    allowed = set(ORDER[: ORDER.index(folder) + 1])
    for path in sources(folder):
        wrong = {module for module in imports(path) if layer(module) not in {None, *allowed}}
        if path.name == "__main__.py":
            wrong -= {"probe.app.cli.main"}
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_a_wrong_direction_would_be_seen(tmp_path):
    path = tmp_path / "kernel.py"
    path.write_text("def f():\n    from probe.app.cli import main\n    import probe.models\n")
    assert {layer(module) for module in imports(path)} == {"app", "probe"}


def test_every_room_says_in_three_sentences_at_most_what_belongs_there():
    folders = {path.parent for path in sources("probe")} - {ROOT / "probe"}
    assert {folder.name for folder in folders} == ROOMS.keys()
    for folder in folders:
        told = ast.get_docstring(parsed(folder / "__init__.py"))
        assert told, folder.name
        assert 1 <= len(told.replace("\n", " ").split(". ")) <= 3, folder.name


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_one_another_one_way(room):
    for path in (ROOT / "probe" / room).rglob("*.py"):
        entered = {name.split(".")[1] for name in imports(path) if name.count(".") > 1 and layer(name) == "probe"}
        wrong = entered & ROOMS.keys() - {room, *ROOMS[room]}
        assert not wrong, f"{path.relative_to(ROOT)} imports from {sorted(wrong)}"
        if room in BELOW_MODELS:
            needed = imports(path, annotations=False)
            assert not any(name.startswith("probe.models") for name in needed), f"{path.relative_to(ROOT)}: models"


@pytest.mark.parametrize("folder", ORDER)
def test_no_modules_import_one_another_in_a_circle(folder):
    found = {group for group in circles(graph()) if folder in {layer(name) for name in group}}
    new = [sorted(group) for group in found - CIRCLES.keys()]
    assert not new, f"circles: {new}"
    gone = [sorted(group) for group in CIRCLES.keys() - found if folder in {layer(name) for name in group}]
    assert not gone, f"no circle any more, take it off the list: {gone}"


def test_circles_are_seen(tmp_path):
    modules = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": set(), "e": {"a"}, "f": {"g"}, "g": {"f"}}
    assert circles(modules) == {frozenset("abc"), frozenset("fg")}
    path = tmp_path / "late.py"
    path.write_text(
        "if TYPE_CHECKING:\n    import probe.heads\nelse:\n    import probe.errors\ndef f():\n    import torch\n"
    )
    assert imports(path, annotations=False) == {"probe.errors", "torch"}
    assert imports(path) == {"probe.heads", "torch"}


def test_the_graph_knows_packages_modules_and_names():
    found = graph()
    assert "probe.interventions.call" in found["probe.engine.attention"]  # a name of a module
    assert "probe.interventions" in found and "probe.engine.decoding" in found["probe.models"]  # a module of a package
    assert "probe.doors.lens" in found["probe.models"]  # inside a function
    assert "probe.models" not in found["probe.patching.pairs"]
    assert "probe.models" in graph(annotations=True)["probe.patching.pairs"]


def test_kernels_need_torch_and_triton_only():
    third_party = {
        module.split(".")[0] for path in sources("kernels") for module in imports(path) if layer(module) is None
    } - set(sys.stdlib_module_names)
    assert third_party <= {"torch", "triton"}


def test_nothing_is_imported_under_a_second_name():
    for folder in (*ORDER, "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            wrong = {module for module in imports(path) if module.split(".")[0] in {*ORDER} - {"probe"}}
            assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_kernels_is_no_package_of_its_own():
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.mark.parametrize("name", ["kernels", "analyses", "benchmarks", "app"])
def test_the_links_are_relative(name):
    assert os.readlink(ROOT / "probe" / name) == f"../{name}"


def test_public_names():
    assert sorted(probe.__all__) == [
        "AttentionStats", "Band", "CalibrateSinks", "Capture", "ForceAttention", "Head", "Mask", "Model", "PatchHeads",
        "ProbeError", "PruneHeads", "Redistribute", "Request", "Result", "Run", "ScaleHeads", "Tokens", "UsageError",
        "load", "open", "wrap",
    ]  # fmt: skip
    for name in probe.__all__:
        assert getattr(probe, name).__name__ == {"open": "open_run"}.get(name, name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = probe.nothing


def test_importing_probe_imports_nothing_heavy():
    code = "import sys, probe; dir(probe); sys.exit(bool({'torch', 'numpy', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


STAND_IN = """
__version__ = "0.18.2"

class Anything:
    def __init__(self, *arguments, **options): pass
    def __getattr__(self, name): return self
    def __call__(self, *arguments, **options): return self

CUDAProperties = Device = FuncRepository = KernelizeFallback = LayerRepository = LocalLayerRepository = Anything
ROCMProperties = Anything
Mode = kernelize = get_kernel = register_kernel_mapping = replace_kernel_forward_from_hub = Anything()
use_kernel_mapping = Anything()

def use_kernel_forward_from_hub(name):
    return lambda layer: layer

def use_kernelized_func(*functions):
    return lambda layer: layer
"""

LOADS = """
import importlib.metadata, sys
import kernels
assert kernels.__version__ == importlib.metadata.version("kernels") == "0.18.2", kernels
from transformers.utils.import_utils import is_kernels_available
assert is_kernels_available()
import probe
model = probe.load("llama")
answer = model.generate(model.chat("What is the capital of France?"), max_new_tokens=12)
assert "Paris" in answer.text, answer.text
assert sys.modules["kernels"].__file__.startswith(sys.argv[1])
"""


@pytest.fixture
def beside_kernels(tmp_path):
    """Runs code where a distribution called kernels, of a version that transformers accepts, is installed."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text(STAND_IN)
    information = tmp_path / "kernels-0.18.2.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.2\n")
    (information / "RECORD").write_text("kernels/__init__.py,,\n")

    def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-c", code, str(tmp_path)]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)

    return run


@pytest.mark.slow
def test_a_distribution_called_kernels_breaks_nothing(beside_kernels):
    """Run from the repository root, as in a notebook there: the root comes first on the path."""
    done = beside_kernels(LOADS, ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_with_a_kernels_package_in_the_root_transformers_would_break(beside_kernels, tmp_path):
    """The reason why kernels/__init__.py must not exist, and the proof that the test above sees it."""
    root = tmp_path / "root"
    (root / "kernels").mkdir(parents=True)
    (root / "kernels" / "__init__.py").write_text("")
    done = beside_kernels("from transformers import LlamaForCausalLM", root)
    assert done.returncode != 0 and "ImportError" in done.stderr
