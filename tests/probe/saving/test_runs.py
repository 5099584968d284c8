"""Run folders: units that survive a kill, torn ends, prompts, the lock, and who may enter."""

import gzip
import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from probe.errors import ProbeError, UsageError
from probe.frame.analysis import Prompt
from probe.heads import Head
from probe.saving.runs import SCHEMA, RunFolder, default_folder, read_prompts

CONFIG = {"lengths": (300, 600), "seed": 0, "haystack": None, "threshold": math.inf}
PROMPTS = [Prompt("aa", (1, 2, 3), "naïve\n\u2028", written=4), Prompt("bb", (7,) * 500), Prompt("cc", (9,), "x")]


def filled(path: Path, *units: str) -> None:
    with RunFolder(path, CONFIG) as folder:
        for unit in units:
            folder.append(unit, {"of": unit}, seconds=1.5)


def test_units_come_back_exactly_in_another_process(tmp_path):
    record = {"score": [0.1, 1 / 3, math.nan, -math.inf], "head": Head(18, 6), "text": "naïve\n\u2028", "n": 2**70}
    with RunFolder(tmp_path / "run", CONFIG) as folder:
        assert folder.records() == {} and folder.seconds == folder.before == 0
        returned = folder.append("first", record, seconds=2.0)
        folder.append("second", (1, 2), seconds=0.5)
        assert folder.seconds == 2.5 and folder.before == 0
        kept = folder.records()
        assert repr(kept["first"]) == repr(returned)  # what a process works on is what the next one reads
    with RunFolder(tmp_path / "run", CONFIG) as again:
        assert repr(again.records()) == repr(kept) and list(kept) == ["first", "second"]
        first, second = again.records().values()
        assert math.isnan(first["score"].pop(2)) and first == record | {"score": [0.1, 1 / 3, -math.inf]}
        assert second == [1, 2] and again.before == again.seconds == 2.5


def test_what_json_cannot_hold_is_refused_and_not_kept(tmp_path):
    with RunFolder(tmp_path, CONFIG) as folder:
        with pytest.raises(TypeError, match=r"one\.bad holds a set"):
            folder.append("one", {"bad": {1}}, seconds=1, prompts=PROMPTS)
        assert folder.records() == {}
    assert not (tmp_path / "units.jsonl").exists() and list(read_prompts(tmp_path)) == []


@pytest.mark.parametrize(
    "torn",
    [b'{"unit": "c", "sec', b'{"unit": "c", "seconds": 1, "record": 3, "prompts": []}', b"\x00\x00\x00\n", b"[]\n"],
)
def test_a_torn_last_line_is_dropped_and_the_next_unit_is_whole(tmp_path, torn):
    filled(tmp_path, "a", "b")
    path = tmp_path / "units.jsonl"
    path.write_bytes(path.read_bytes() + torn)
    with RunFolder(tmp_path, CONFIG) as folder:
        assert list(folder.records()) == ["a", "b"] and folder.seconds == 3.0
        folder.append("c", 3, seconds=0)
    with RunFolder(tmp_path, CONFIG) as folder:
        assert folder.records() == {"a": {"of": "a"}, "b": {"of": "b"}, "c": 3}


def test_damage_before_the_last_line_is_an_error_not_a_loss(tmp_path):
    filled(tmp_path, "a", "b")
    path = tmp_path / "units.jsonl"
    path.write_bytes(path.read_bytes().replace(b"seconds", b"second\x00", 1))
    with pytest.raises(ProbeError, match=r"line 1 is damaged"):
        RunFolder(tmp_path, CONFIG)
    assert path.read_bytes().count(b"\n") == 2


def test_prompts_are_kept_once_each_in_full_and_counted_by_unit(tmp_path):
    with RunFolder(tmp_path, CONFIG) as folder:
        folder.append("a", 1, seconds=0, prompts=PROMPTS[:2])
        folder.append("b", 2, seconds=0, prompts=[Prompt("aa", (1, 2, 3), "naïve\n\u2028", written=1), PROMPTS[2]])
        assert folder.prompts() == {"aa": (3, 4), "bb": (500, 0), "cc": (1, 0)}  # the longest continuation counts
    with RunFolder(tmp_path, CONFIG) as folder:
        folder.append("c", 3, seconds=0, prompts=[PROMPTS[1]])
        assert list(folder.prompts()) == ["aa", "bb", "cc"]
    expected = [{"hash": each.hash, "ids": list(each.ids), "text": each.text} for each in PROMPTS]
    assert list(read_prompts(tmp_path)) == expected
    with gzip.open(tmp_path / "prompts.jsonl.gz", "rt", encoding="utf-8") as file:
        assert len(file.readlines()) == 3
    assert list(read_prompts(tmp_path / "nowhere")) == []


@pytest.mark.parametrize("cut", [1, 9, 30])
def test_a_torn_member_of_the_prompts_is_cut_off_and_written_again(tmp_path, cut):
    """The process died while it wrote the prompts of the second unit, whose line is therefore not there."""
    path = tmp_path / "prompts.jsonl.gz"
    with RunFolder(tmp_path, CONFIG) as folder:
        folder.append("a", 1, seconds=0, prompts=PROMPTS[:1])
        whole = path.stat().st_size
        folder.append("b", 2, seconds=0, prompts=PROMPTS[1:2])
    lines = (tmp_path / "units.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "units.jsonl").write_bytes(lines[0])
    path.write_bytes(path.read_bytes()[: whole + cut])
    with RunFolder(tmp_path, CONFIG) as folder:
        assert list(folder.records()) == ["a"] and path.stat().st_size == whole
        folder.append("b", 2, seconds=0, prompts=PROMPTS[1:])
    assert [prompt["hash"] for prompt in read_prompts(tmp_path)] == ["aa", "bb", "cc"]


@pytest.mark.parametrize("change", ["flipped", "cut"])
def test_damage_in_the_middle_of_the_prompts_is_reported_and_cuts_nothing(tmp_path, change):
    path = tmp_path / "prompts.jsonl.gz"
    with RunFolder(tmp_path, CONFIG) as folder:
        folder.append("a", 1, seconds=0, prompts=PROMPTS[:1])
        first = path.stat().st_size
        folder.append("b", 2, seconds=0, prompts=PROMPTS[1:])
    content = path.read_bytes()
    damaged = bytes([content[first // 2] ^ 255])
    middle = content[: first // 2] + (damaged + content[first // 2 + 1 :] if change == "flipped" else content[first:])
    path.write_bytes(middle)
    with pytest.raises(ProbeError, match=r"prompts\.jsonl\.gz is damaged; delete the folder and run again"):
        RunFolder(tmp_path, CONFIG)
    assert path.read_bytes() == middle
    path.write_bytes(content)
    RunFolder(tmp_path, CONFIG).close()  # the lock was given back


def test_prompts_whose_unit_was_cut_off_are_read_once(tmp_path):
    """The prompts were whole on the disk and the unit's line was not: the unit keeps them again."""
    with RunFolder(tmp_path, CONFIG) as folder:
        folder.append("a", 1, seconds=0, prompts=PROMPTS)
    (tmp_path / "units.jsonl").write_bytes(b"")
    with RunFolder(tmp_path, CONFIG) as folder:
        folder.append("a", 1, seconds=0, prompts=PROMPTS)
    assert [prompt["hash"] for prompt in read_prompts(tmp_path)] == ["aa", "bb", "cc"]


def test_other_options_are_refused_in_one_line_that_names_them(tmp_path):
    RunFolder(tmp_path, CONFIG).close()
    with pytest.raises(UsageError, match=r"seed: expected 0, got 1.*--out") as caught:
        RunFolder(tmp_path, CONFIG | {"seed": 1})
    assert "\n" not in str(caught.value) and "lengths" not in str(caught.value)
    with pytest.raises(UsageError, match=r"a: .*, b: .*, c: .* and 1 more\)"):
        RunFolder(tmp_path, CONFIG | dict.fromkeys("abcd", 1))
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
    for name in ("units.jsonl", "samples.jsonl", "result.json"):
        (tmp_path / name).write_text("")
        with pytest.raises(ProbeError, match=rf"holds {name} but no config\.json; give another --out"):
            RunFolder(tmp_path, CONFIG)
        (tmp_path / name).unlink()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ProbeError, match=r"config\.json is not valid JSON"):
        RunFolder(tmp_path, CONFIG)


@pytest.mark.parametrize("schema", [{}, {"schema": SCHEMA - 1}, {"schema": SCHEMA + 1}])
def test_a_folder_of_another_version_is_refused_with_what_to_do(tmp_path, schema):
    """Folders without a version are those of the first form, which kept samples.jsonl."""
    (tmp_path / "config.json").write_text(json.dumps({"analysis": "heads", "seed": 0} | schema))
    (tmp_path / "samples.jsonl").write_text('{"seconds": 1, "sample": {}}\n')
    with pytest.raises(UsageError, match="was made by another version of probe; give another --out or delete it"):
        RunFolder(tmp_path, {"analysis": "heads", "seed": 0})
    assert (tmp_path / "samples.jsonl").exists()


def test_finished_means_a_saved_result(tmp_path):
    with RunFolder(tmp_path, CONFIG) as folder:
        folder.append("a", 1, seconds=0)
        assert not folder.finished
        (tmp_path / "result.json").write_text("{}")
        assert folder.finished


WRITER = """
import sys
from probe.frame.analysis import Prompt
from probe.saving.runs import RunFolder
with RunFolder(sys.argv[1], {"seed": 0}) as folder:
    n = len(folder.records())
    while True:
        prompt = Prompt(str(n), tuple(range(n, n + 5000)), "x" * 1000)
        folder.append(f"unit {n}", {"n": n, "padding": "x" * 100_000}, seconds=1, prompts=[prompt])
        print(n, flush=True)
        n += 1
"""


def test_kill_loses_at_most_the_unit_in_flight_and_frees_the_folder(tmp_path):
    finished = 0
    for _ in range(3):
        command = [sys.executable, "-c", WRITER, str(tmp_path / "run")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]) as writer:
            assert writer.stdout is not None
            for _ in range(5):
                seen = int(writer.stdout.readline())
            with pytest.raises(ProbeError, match="in use by another run"):
                RunFolder(tmp_path / "run", {"seed": 0})
            writer.send_signal(signal.SIGKILL)
            printed = [seen, *map(int, writer.stdout.read().split())]
        with RunFolder(tmp_path / "run", {"seed": 0}) as folder:
            numbers = [record["n"] for record in folder.records().values()]
            assert list(folder.records()) == [f"unit {n}" for n in numbers]
        assert numbers == list(range(len(numbers)))
        assert printed[-1] + 1 <= len(numbers) <= printed[-1] + 2  # kept, at most, before it could be announced
        assert len(numbers) >= finished + 5
        kept = {prompt["hash"]: prompt["ids"] for prompt in read_prompts(tmp_path / "run")}
        assert all(kept[str(n)] == list(range(n, n + 5000)) for n in numbers)
        finished = len(numbers)


def test_default_folder_names_command_model_and_options():
    folder = default_folder("heads", "org/SmolLM2 135M", CONFIG)
    assert folder.parent == Path("runs") and folder.name.startswith("heads-SmolLM2-135M-")
    assert folder == default_folder("heads", "org/SmolLM2 135M", dict(reversed(CONFIG.items())))
    assert folder != default_folder("heads", "org/SmolLM2 135M", CONFIG | {"seed": 1})
    assert default_folder("heads", "/", {}).name.startswith("heads-model-")
    assert default_folder("intervene act", "llama", {}).name.startswith("intervene-act-llama-")
