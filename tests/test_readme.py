"""Every command and every Python block of README.md, executed as it stands there but for `SHORTER`."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

import probe
from probe.app import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


# Options that leave out most of what takes minutes.
SHORTER = {"probe heads --model llama --validate": ["--preset", "quick", "--kind", "retrieval", "--held-out", "2"]}


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(README) if kind == language]


def commands(program: str) -> list[str]:
    """The command lines of the bash blocks that start with this program, comments cut off."""
    lines = [" ".join(shlex.split(line, comments=True)) for text in blocks("bash") for line in text.splitlines()]
    return [line for line in lines if line.split(" ")[0].rsplit("/", 1)[-1] == program]


def test_what_is_made_shorter_stands_in_the_readme():
    assert set(SHORTER) <= set(commands("probe"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("user")


@pytest.fixture
def user(folder, llama, monkeypatch):
    """A user's working directory, where runs of one command are there for the next one; llama is loaded already."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(probe, "load", lambda name="llama", **options: {"llama": llama}[name], raising=False)


def test_only_programs_that_are_tested_here():
    programs = {line.split()[0] for text in blocks("bash") for line in text.splitlines() if line.strip()}
    assert programs <= {"git", "cd", "make", "python3", "source", ".venv/bin/pip", "probe"}
    assert {kind for kind, _ in BLOCK.findall(README)} <= {"bash", "python", "text", "json"}


@pytest.mark.slow
@pytest.mark.parametrize("command", commands("probe"))
def test_probe_commands_work(command, user, capsys):
    assert cli.run([*shlex.split(command)[1:], *SHORTER.get(command, [])]) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.slow
@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_work(code, user):
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("command", commands("make"))
def test_make_targets_exist(command):
    done = subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_pip_lines_are_what_make_runs():
    """Installing takes minutes; `make setup` ran these very arguments to build the environment of this test."""
    shown = [line.split("pip ", 1)[1] for line in commands("pip")]
    recipe = subprocess.run(
        ["make", "--dry-run", "--always-make", "setup"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    ran = [" ".join(shlex.split(line)) for line in recipe.splitlines() if " -m pip install" in line]
    assert len(shown) == 2
    for line in shown:
        wanted = set(line.split()) - {"install"}
        assert any(wanted <= set(each.split()) for each in ran), f"README's pip {line} is not what make runs: {ran}"
