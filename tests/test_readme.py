"""Every command and every Python block of README.md, executed as it stands there but for `SHORTER`."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


# Options that leave out most of what takes minutes.
SHORTER = {"probe heads --model llama --validate": ["--held-out", "2"]}


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
    """A user's working directory: runs of one command are there for the next one."""
    return tmp_path_factory.mktemp("user")


def test_only_programs_that_are_tested_here():
    programs = {line.split()[0] for text in blocks("bash") for line in text.splitlines() if line.strip()}
    assert programs <= {"git", "cd", "make", "python3", "source", ".venv/bin/pip", "probe"}
    assert {kind for kind, _ in BLOCK.findall(README)} <= {"bash", "python", "text", "json"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("command", commands("probe"))
def test_probe_commands_work(command, folder):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-m", "probe", *shlex.split(command)[1:], *SHORTER.get(command, [])]
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_work(code, folder):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


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
