"""Tasks by name and by path, their options, and names that are neither."""

from __future__ import annotations

import subprocess
import sys

import pytest

from probe import UsageError
from probe.analyses.circuits.tasks import NAMES
from probe.analyses.circuits.tasks.colored_objects import colored_objects
from probe.analyses.circuits.tasks.files import write
from probe.analyses.circuits.tasks.registry import BUILDERS, task


def test_every_name_has_its_task(llama):
    assert tuple(BUILDERS) == NAMES
    for name in NAMES:
        if name == "greater-than":  # the packaged tokenizer splits digits
            continue
        found = task(llama, name, prompts=3, seed=5)
        assert (found.name, len(found), found.seed) == (name, 3, 5)
        assert "END" in found.prompts[0].roles


def test_options_reach_the_task(llama):
    found = task(llama, "colored-objects", prompts=4, seed=1, shots=2, form="lower")
    assert found == colored_objects(llama, prompts=4, seed=1, shots=2, form="lower")
    assert found.options == {"shots": 2, "form": "lower"}


@pytest.mark.parametrize("name", ["mine.jsonl", "folder/mine", "mine"])
def test_a_path_is_read(llama, tmp_path, monkeypatch, name):
    """A name with a suffix or a folder, and a bare name where there is such a file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    prompts = task(llama, "ioi", prompts=4).prompts
    write(prompts, tmp_path / name)
    assert task(llama, name).prompts == task(llama, tmp_path / name).prompts == prompts
    assert len(task(llama, name, prompts=2)) == 2


def test_a_file_called_like_a_task_does_not_hide_it(llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ioi").write_text("nothing")
    assert task(llama, "ioi", prompts=2).name == "ioi"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "iio"},
            r"unknown task 'iio' \(did you mean ioi\?\): expected ioi, colored-objects, capitals, su",
        ),
        ({"name": "zzz"}, "unknown task 'zzz': expected ioi, .*, or the path of a JSONL file"),
        ({"name": "none.jsonl"}, "cannot read the task file none.jsonl: No such file"),
        ({"name": "ioi", "shots": 1}, "ioi has no option 'shots': it takes order, corruption"),
        ({"name": "capitals", "shots": 1}, "capitals has no option 'shots': it takes none"),
        ({"name": "none.jsonl", "shots": 1}, "none.jsonl has no option 'shots': it takes none"),
        ({"name": "ioi", "prompts": 0}, "expected at least one prompt, got 0: raise --prompts"),
        ({"name": "none.jsonl", "prompts": -3}, "expected at least one prompt, got -3: raise --prompts"),
    ],
)
def test_what_is_no_task_is_refused_in_one_line(llama, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message) as caught:
        task(llama, **arguments)
    assert "\n" not in str(caught.value)


def test_the_names_need_no_torch():
    code = "import sys; from probe.analyses.circuits.tasks import NAMES; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
