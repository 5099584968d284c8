from __future__ import annotations

import json

import pandas as pd
import pytest
import torch

from probe.analyses.heads.needles import Needle
from probe.analyses.heads.retrieval import RetrievalHeads, is_stable, options, run, run_config
from probe.errors import ProbeError, UsageError
from probe.heads import Head
from probe.saving.old_runs import RunFolder
from probe.saving.results import Result

TOP_FIVE = {Head(18, 6), Head(17, 3), Head(17, 4), Head(18, 7), Head(23, 2)}
SMALL = {"lengths": (300,), "depths": (10, 50, 90)}


@pytest.fixture(scope="module")
def measured(llama, tmp_path_factory):
    """Six needles in 300 tokens on the packaged model, and the folder of the run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    calls = []
    result = run(llama, **SMALL, out=folder, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 6) for done in range(1, 7)]
    return result, folder


def test_six_needles_find_the_known_heads_of_smollm(measured):
    found, _ = measured
    assert set(found.top(5)) == TOP_FIVE
    assert found.top(1) == [Head(18, 6)]
    assert found.score[18, 6] >= 0.8
    assert found.accuracy()["value"] == 1.0
    assert 0.04 < len(found.retrieval_heads()) / found.n_heads < 0.1
    assert float((found.score == 0).double().mean()) > 0.5  # most heads copy nothing
    assert Head(18, 6) in found.always_active()


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
    again = Result.load(folder)
    assert isinstance(again, RetrievalHeads)
    assert again == found
    assert again.manifest.fingerprint() == found.manifest.fingerprint()
    pages = {page.stem for page in (folder / "figures").glob("*.html")}
    assert pages == {"heads", "curve", "accuracy", "families"}
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_finished_run_is_read_not_repeated(measured, llama):
    found, folder = measured
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama, "greedy", lambda *_, **__: pytest.fail("the model ran"))
        assert run(llama, **SMALL, out=folder) == found


def test_an_interrupted_run_continues_to_the_same_numbers(measured, llama, tmp_path):
    found, _ = measured

    def interrupt(done, total):
        if done in (1, 4):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(llama, **SMALL, out=tmp_path / "run", progress=interrupt)
    torn = (tmp_path / "run" / "samples.jsonl").read_bytes()[:-40]
    (tmp_path / "run" / "samples.jsonl").write_bytes(torn)
    assert run(llama, **SMALL, out=tmp_path / "run") == found


def test_a_folder_of_another_run_is_refused(measured, llama):
    _, folder = measured
    with pytest.raises(UsageError, match=r"made with other options .*lengths"):
        run(llama, lengths=(400,), depths=SMALL["depths"], out=folder)


def test_an_open_run_folder_serves_too(measured, llama, tmp_path):
    found, folder = measured
    config = run_config(llama, options(**SMALL))
    with RunFolder(tmp_path / "copy", config) as copy:
        with RunFolder(folder, config) as original:
            for sample in original.samples():
                copy.append(sample)
        assert run(llama, **SMALL, out=copy) == found


@pytest.mark.parametrize(("variant", "factor"), [("set", 1), ("per_step", 2)])
def test_only_per_step_counts_an_answer_said_twice_twice(measured, llama, tmp_path, variant, factor):
    found, folder = measured
    with RunFolder(tmp_path / variant, run_config(llama, options(**SMALL), score=variant)) as copy:
        with RunFolder(folder, run_config(llama, options(**SMALL))) as original:
            for sample in original.samples():
                steps, again = len(sample["emitted"]), [[step, *head] for step, *head in sample["copied"]]
                sample["emitted"] = sample["emitted"] * 2
                sample["copied"] = again + [[step + steps, *head] for step, *head in again]
                copy.append(sample)
        twice = run(llama, **SMALL, score=variant, out=copy)
    assert twice.variant == variant
    torch.testing.assert_close(twice.score, factor * found.score)


def test_own_needles_are_asked(llama):
    own = Needle("The password of the old gate is marble lantern.", "What is the password of the old gate?",
                 "marble lantern", "custom")  # fmt: skip
    found = run(llama, lengths=(200,), depths=(50,), needles=[own])
    assert found.samples["answer"].tolist() == ["marble lantern"]
    assert found.score[18, 6] == 1.0
    assert found.low.isnan().all()  # one needle has no interval
    assert set(found.figures()) == {"heads", "curve", "accuracy"}


def test_a_model_that_retrieves_nothing_is_an_error_not_zeros(llama):
    riddle = Needle("Zxq vbn is qwpo.", "What color is the sky?", "qwpo", "custom")
    with pytest.raises(ProbeError, match=r"retrieved none of 1 needles.*expected 'qwpo', got") as error:
        run(llama, lengths=(100,), depths=(50,), needles=[riddle], max_new_tokens=4)
    assert "\n" not in str(error.value)


def test_unknown_scores_are_refused(llama):
    with pytest.raises(UsageError, match="--score: expected set or per_step, got 'mean'"):
        run(llama, score="mean")  # type: ignore[arg-type]


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


def test_a_stable_list_ends_the_run_early(measured, llama, tmp_path):
    """The samples of the finished run, many times over, stand in for a long run whose list has settled."""
    _, folder = measured
    longer = {"lengths": (300,), "depths": (10, 50, 90), "samples": 4}
    with RunFolder(tmp_path / "stable", run_config(llama, options(**longer), until_stable=True)) as copy:
        with RunFolder(folder, run_config(llama, options(**SMALL))) as original:
            for _ in range(2):
                for sample in original.samples():
                    copy.append(sample)
        found = run(llama, **longer, until_stable=True, out=copy)
    assert found.stopped_early
    assert len(found.samples) == 12 < len(options(**longer))


def test_the_map_shows_every_head_at_its_place(measured):
    found, _ = measured
    heads = found.plot()
    cells = heads.data[0]
    assert [list(row) for row in cells.z] == found.score.T.tolist()
    assert cells.customdata[6][18].startswith("<b>L18H6</b>")
    assert "L18H6" in heads.layout.title.text
    marked = {(note.x, note.y) for note in heads.layout.annotations}
    assert marked == set(found.retrieval_heads())


def test_the_accuracy_map_counts_needles(measured):
    cells = measured[0].figures()["accuracy"].figure.data[0]
    assert [list(row) for row in cells.text] == [["2/2"]] * 3
    assert list(cells.x) == ["300"]
