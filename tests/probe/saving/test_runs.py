import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from probe.errors import ProbeError, UsageError
from probe.heads import Head
from probe.saving.runs import RunFolder, Steps, default_folder

CONFIG = {"lengths": (300, 600), "seed": 0, "haystack": None, "threshold": math.inf}


def test_samples_come_back_exactly_in_another_process(tmp_path):
    sample = {"score": [0.1, 1 / 3, math.nan, -math.inf], "head": Head(18, 6), "text": "naïve\n\u2028", "n": 2**70}
    with RunFolder(tmp_path / "run", CONFIG) as folder:
        assert folder.samples() == [] and folder.seconds == 0
        folder.append(sample)
        folder.append({"second": True})
        kept = folder.samples()
    with RunFolder(tmp_path / "run", CONFIG) as again:
        first, second = again.samples()
        assert repr(again.samples()) == repr(kept)
        assert math.isnan(first["score"].pop(2)) and first == sample | {"score": [0.1, 1 / 3, -math.inf]}
        assert second == {"second": True}
        assert again.seconds > 0


@pytest.mark.parametrize(
    "torn", [b'{"seconds": 1, "sam', b'{"seconds": 1, "sample": {"a": 3}}', b"\x00\x00\x00\n", b"[]\n"]
)
def test_a_torn_last_line_is_dropped_and_the_next_sample_is_whole(tmp_path, torn):
    with RunFolder(tmp_path, CONFIG) as folder:
        folder.append({"a": 1})
        folder.append({"a": 2})
    path = tmp_path / "samples.jsonl"
    path.write_bytes(path.read_bytes() + torn)
    with RunFolder(tmp_path, CONFIG) as folder:
        assert folder.samples() == [{"a": 1}, {"a": 2}]
        folder.append({"a": 3})
    with RunFolder(tmp_path, CONFIG) as folder:
        assert folder.samples() == [{"a": 1}, {"a": 2}, {"a": 3}]


def test_damage_before_the_last_line_is_an_error_not_a_loss(tmp_path):
    with RunFolder(tmp_path, CONFIG) as folder:
        folder.append({"a": 1})
        folder.append({"a": 2})
    path = tmp_path / "samples.jsonl"
    path.write_bytes(path.read_bytes().replace(b"seconds", b"second\x00", 1))
    with pytest.raises(ProbeError, match=r"line 1 is damaged"):
        RunFolder(tmp_path, CONFIG)
    assert path.read_bytes().count(b"\n") == 2


def test_other_options_are_refused_in_one_line_that_names_them(tmp_path):
    RunFolder(tmp_path, CONFIG).close()
    with pytest.raises(UsageError, match=r"seed: expected 0, got 1.*--out") as caught:
        RunFolder(tmp_path, CONFIG | {"seed": 1})
    assert "\n" not in str(caught.value) and "lengths" not in str(caught.value)
    RunFolder(tmp_path, {**CONFIG, "lengths": [300, 600]}).close()  # a tuple and a list are the same options


def test_a_refused_folder_is_not_left_locked(tmp_path):
    RunFolder(tmp_path, CONFIG).close()
    with pytest.raises(UsageError):
        RunFolder(tmp_path, {})
    RunFolder(tmp_path, CONFIG).close()


def test_a_file_and_a_foreign_folder_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--out"):
        RunFolder(tmp_path / "file", CONFIG)
    (tmp_path / "samples.jsonl").write_text("")
    with pytest.raises(ProbeError, match=r"no config\.json"):
        RunFolder(tmp_path, CONFIG)


def test_finished_means_a_saved_result_and_restart_forgets_it(tmp_path):
    with RunFolder(tmp_path, CONFIG) as folder:
        folder.append({"a": 1})
        assert not folder.finished
        (tmp_path / "result.json").write_text("{}")
        assert folder.finished
        folder.restart()
        assert not folder.finished and folder.samples() == []
        folder.append({"a": 2})
    with RunFolder(tmp_path, CONFIG) as folder:
        assert folder.samples() == [{"a": 2}]


WRITER = """
import sys
from probe.saving.runs import RunFolder
with RunFolder(sys.argv[1], {"seed": 0}) as folder:
    n = len(folder.samples())
    while True:
        folder.append({"n": n, "padding": "x" * 100_000})
        print(n, flush=True)
        n += 1
"""


def test_kill_loses_at_most_the_sample_in_flight_and_frees_the_folder(tmp_path):
    finished = 0
    for _ in range(3):
        command = [sys.executable, "-c", WRITER, str(tmp_path / "run")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(5):
                seen = int(writer.stdout.readline())
            with pytest.raises(ProbeError, match="in use by another run"):
                RunFolder(tmp_path / "run", {"seed": 0})
            writer.send_signal(signal.SIGKILL)
            printed = [seen, *map(int, writer.stdout.read().split())]
        with RunFolder(tmp_path / "run", {"seed": 0}) as folder:
            numbers = [sample["n"] for sample in folder.samples()]
        assert numbers == list(range(len(numbers)))
        assert printed[-1] + 1 <= len(numbers) <= printed[-1] + 2  # kept, at most, before it could be announced
        assert len(numbers) >= finished + 5
        finished = len(numbers)


def test_default_folder_names_command_model_and_options():
    folder = default_folder("heads", "org/SmolLM2 135M", CONFIG)
    assert folder.parent == Path("runs") and folder.name.startswith("heads-SmolLM2-135M-")
    assert folder == default_folder("heads", "org/SmolLM2 135M", dict(reversed(CONFIG.items())))
    assert folder != default_folder("heads", "org/SmolLM2 135M", CONFIG | {"seed": 1})
    assert default_folder("heads", "/", {}).name.startswith("heads-model-")


def test_steps_are_done_once_and_their_progress_counts_those_that_were_there(tmp_path):
    seen, calls = [], []

    def compute(value):
        calls.append(value)
        return [value, math.nan]

    with RunFolder(tmp_path, CONFIG) as folder:
        steps = Steps(folder, 3, lambda done, total: seen.append((done, total)))
        assert steps("a", lambda: compute(1))[0] == 1
    with RunFolder(tmp_path, CONFIG) as folder:
        steps = Steps(folder, 3, lambda done, total: seen.append((done, total)))
        assert steps("a", lambda: compute(2))[0] == 1 and steps("b", lambda: compute(3))[0] == 3
        assert steps("b", lambda: compute(4))[0] == 3
    assert calls == [1, 3] and seen == [(1, 3), (1, 3), (2, 3), (3, 3)]
    assert Steps(None, 1)("a", lambda: 5) == 5
