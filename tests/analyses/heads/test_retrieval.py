from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from probe.analyses import heads
from probe.analyses.heads.costs import cost
from probe.analyses.heads.needle_runs import Questions
from probe.analyses.heads.needles import Needle
from probe.analyses.heads.result import Heads
from probe.analyses.heads.retrieval import RetrievalHeads, is_stable, retrieval_heads
from probe.analyses.texts.haystacks import language_reference
from probe.errors import ProbeError, UsageError
from probe.frame.analysis import Facts
from probe.frame.speed import measure
from probe.heads import Head
from probe.saving.results import Result
from probe.saving.runs import RunFolder, read_prompts

pytestmark = pytest.mark.slow
SHORT = {"kinds": ("retrieval", "induction"), "lengths": (300,)}
TOP_FIVE = {Head(18, 6), Head(17, 3), Head(17, 4), Head(18, 7), Head(23, 2)}


@pytest.fixture(scope="module")
def short_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs") / "short"


@pytest.fixture(scope="module")
def short_run(llama, short_folder) -> Heads:
    """Six needles in 300 tokens and the induction scores of the packaged model."""
    calls = []
    found = heads.run(llama, **SHORT, out=short_folder, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 7) for done in range(1, 8)]
    return found


@pytest.fixture(scope="module")
def measured(short_run, short_folder):
    """Six needles in 300 tokens on the packaged model, and the folder of the run."""
    return short_run.retrieval, short_folder


@pytest.fixture(scope="module")
def samples(short_run, short_folder):
    """The records of the six needles."""
    config = json.loads((short_folder / "config.json").read_text())
    with RunFolder(short_folder, {name: value for name, value in config.items() if name != "schema"}) as folder:
        records = folder.records()
    return [records[f"needle {index}"] for index in range(6)]


def test_six_needles_find_the_known_heads_of_smollm(measured):
    found, _ = measured
    assert set(found.top(5)) == TOP_FIVE
    assert found.top(1) == [Head(18, 6)]
    assert found.score[18, 6] >= 0.8
    assert found.accuracy()["value"] == 1.0
    assert 0.04 < len(found.retrieval_heads()) / found.n_heads < 0.1
    assert float((found.score == 0).double().mean()) > 0.5  # most heads copy nothing
    assert found.to_df().set_index("name")["active_share"]["L18H6"] == 1


def test_some_heads_copy_digits_only(measured):
    families = measured[0].by_family()
    assert families["numbers"][6, 0] > 0.2
    assert families["activities"][6, 0] < 0.1
    assert families["activities"][23, 7] > families["numbers"][23, 7] + 0.3


def test_the_table_is_best_first_and_complete(measured, llama):
    found, _ = measured
    table = found.to_df()
    assert len(table) == 270
    assert table["score"].is_monotonic_decreasing
    assert table.loc[0, ["name", "layer", "head", "kv_group"]].tolist() == ["L18H6", 18, 6, 2]
    heads = [Head(*pair) for pair in zip(table["layer"], table["head"], strict=True)]
    assert table["kv_group"].tolist() == [llama.kv_group(head) for head in heads]
    assert ((table["low"] <= table["score"]) & (table["score"] <= table["high"])).all()
    both = (table["numbers"] + table["activities"]) / 2  # three needles of each
    pd.testing.assert_series_equal(both, table["score"], check_names=False)


def test_the_result_survives_its_folder(measured):
    found, folder = measured
    again = Result.load(folder / "retrieval")
    assert isinstance(again, RetrievalHeads)
    assert again == found
    assert again.manifest.fingerprint() == found.manifest.fingerprint()
    whole = Result.load(folder)
    assert isinstance(whole, Heads) and whole.retrieval == found and whole.manifest.bos is False
    pages = {page.stem for page in (folder / "retrieval" / "figures").glob("*.html")}
    assert pages == {"heads", "curve", "accuracy", "families"}
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_packaged_models_retrieval_heads_are_mostly_induction_heads(short_run):
    table = short_run.catalogue
    pair = table.correlation("retrieval", "induction")
    assert pair is not None and 0.85 < pair["pearson"] < 1 and pair["low"] > 0.7
    assert table.summary()[0].endswith("the retrieval heads are mostly induction heads.")
    assert table.top("retrieval", 1) == table.top("induction", 1) == [Head(18, 6)]
    assert {finding.name: finding.verdict for finding in short_run.findings()}["induction"] == "holds"


def test_the_estimate_is_of_the_right_order(llama, short_run):
    """Within five times: the machine may be busier in one of the two measurements."""
    asked = Questions(haystack=language_reference(), lengths=(300,), depths=(10, 50, 90))
    estimate = cost(llama, measure(llama), questions=asked, kinds=("induction",))
    assert estimate.seconds / 5 < short_run.manifest.measuring < estimate.seconds * 5
    assert short_run.manifest.passes is not None and estimate.passes is not None
    assert estimate.passes / 5 < short_run.manifest.passes < estimate.passes * 5


def test_a_finished_run_is_read_not_repeated(short_run, short_folder, llama):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama, "greedy", lambda *_, **__: pytest.fail("the model ran"))
        assert heads.run(llama, **SHORT, out=short_folder) == short_run


def test_an_interrupted_run_continues_to_the_same_numbers(short_run, short_folder, llama, tmp_path):
    """Five of six needles are kept, and the sixth was cut off while it was written."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_bytes((short_folder / "config.json").read_bytes())
    lines = (short_folder / "units.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "units.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:-40])
    calls = []
    found = heads.run(llama, **SHORT, out=folder, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(6, 7), (7, 7)] and found.differences(short_run) == []
    assert found.retrieval is not None
    assert found.retrieval.manifest.fingerprint() == short_run.retrieval.manifest.fingerprint()


def test_a_folder_of_another_run_is_refused(measured, llama):
    _, folder = measured
    with pytest.raises(UsageError, match=r"made with other options .*lengths"):
        heads.run(llama, **{**SHORT, "lengths": (400,)}, out=folder)


def test_the_folder_keeps_the_prompts_as_they_were_read(measured, llama):
    found, folder = measured
    prompts = {prompt["hash"]: prompt for prompt in read_prompts(folder)}
    for sample in found.samples.to_dict("records"):
        text = prompts[sample["prompt"]]["text"]
        assert sample["needle"] in text and sample["question"] in text
        assert prompts[sample["prompt"]]["ids"] == llama.tokens(text, bos=False).ids.tolist()


@pytest.mark.parametrize(("variant", "factor"), [("set", 1), ("per_step", 2)])
def test_only_per_step_counts_an_answer_said_twice_twice(measured, samples, llama, variant, factor):
    found, _ = measured
    said_twice = []
    for sample in samples:
        steps, again = len(sample["emitted"]), [[step, *head] for step, *head in sample["copied"]]
        copied = again + [[step + steps, *head] for step, *head in again]
        said_twice.append({**sample, "emitted": sample["emitted"] * 2, "copied": copied})
    twice = retrieval_heads(said_twice, Facts.of(llama), found.manifest, variant=variant)
    assert twice.variant == variant
    torch.testing.assert_close(twice.score, factor * found.score)


def test_own_needles_are_asked(llama):
    own = Needle("The password of the old gate is marble lantern.", "What is the password of the old gate?",
                 "marble lantern", "custom")  # fmt: skip
    found = heads.run(llama, kinds=("retrieval",), lengths=(200,), depths=(50,), own_needles=[own]).retrieval
    assert found.samples["answer"].tolist() == ["marble lantern"]
    assert found.score[18, 6] == 1.0
    assert found.low.isnan().all()  # one needle has no interval
    assert set(found.figures()) == {"heads", "curve", "accuracy"}


def test_a_model_that_retrieves_nothing_is_an_error_not_zeros(llama):
    riddle = Needle("Zxq vbn is qwpo.", "What color is the sky?", "qwpo", "custom")
    with pytest.raises(ProbeError, match=r"retrieved none of 1 needles.*expected 'qwpo', got") as error:
        heads.run(llama, lengths=(100,), depths=(50,), own_needles=[riddle], max_new_tokens=4)
    assert "\n" not in str(error.value)


def test_a_list_is_stable_once_its_top_no_longer_changes():
    generator = torch.Generator().manual_seed(0)
    clear = torch.linspace(1, 0, 40).reshape(4, 10)
    steady = [clear + 0.001 * torch.rand(4, 10, generator=generator) for _ in range(12)]
    assert not is_stable(steady[:6])
    assert is_stable(steady[:7])
    noise = [torch.rand(4, 10, generator=generator) for _ in range(12)]
    assert not is_stable(noise)
    late = [*noise[:3], *(100 * each for each in steady)]  # a noisy beginning that later samples outweigh
    assert is_stable(late)


def test_a_run_that_stopped_early_says_so(measured, samples, llama):
    """The needles of the finished run, twice over, stand in for a long run whose ranking has settled."""
    found = retrieval_heads(samples * 2, Facts.of(llama), measured[0].manifest, variant="set", stopped_early=True)
    assert found.stopped_early and len(found.samples) == 12
    assert "the ranking of the 20 best heads was stable" in found.summary()[0]


def test_the_map_shows_every_head_at_its_place(measured):
    found, _ = measured
    plot = found.figures()["heads"]
    cells = plot.figure.data[0]
    assert [list(row) for row in cells.z] == found.score.T.tolist()
    assert cells.customdata[6][18].startswith("<b>L18H6</b>")
    assert "L18H6" in plot.headline and "L18H6" in found.plot().layout.title.text
    marked = {(note.x, note.y) for note in plot.figure.layout.annotations}
    assert marked == set(found.retrieval_heads())


def test_the_accuracy_map_counts_needles(measured):
    cells = measured[0].figures()["accuracy"].figure.data[0]
    assert [list(row) for row in cells.text] == [["2/2"]] * 3
    assert list(cells.x) == ["300"]
