"""The library's one building: where it is kept, when it is built again, and what is said where it cannot be."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from probe.kernels.native import build

ATTEND = """
import sys, torch
from probe.kernels.attend import attend, chosen
from probe.kernels.contract import Request
q = torch.ones(1, 1, 3, 8)
print(chosen(q, q, request=Request(lse=True)))
print(attend(q, q, q, request=Request(lse=True))[1].lse.flatten().tolist())
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    """A fresh interpreter, whose builds go where the environment says."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | environment
    )


def compiler(folder: Path, body: str) -> Path:
    """A program that stands where the compiler does."""
    path = folder / "c++"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


needs_a_compiler = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler here")


@pytest.mark.slow
@needs_a_compiler
def test_built_once_said_once_and_found_again_though_a_build_was_killed(tmp_path):
    """torch's own loader would wait for ever for the lock that the killed build left."""
    environment = os.environ | {"TORCH_EXTENSIONS_DIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", ATTEND], env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("building the CPU kernels")
    process.kill()
    process.communicate()
    assert not list(tmp_path.rglob("*.so"))
    first = run(ATTEND, TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert first.stdout.startswith("native\n[2.828427")  # one key, whose score is 8 / sqrt(8)
    assert first.stderr.count("building the CPU kernels, once for this machine") == 1
    assert [path.name for path in tmp_path.rglob("*.so")] == [build.place().name]
    again = run(ATTEND, TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert again.stdout == first.stdout
    assert again.stderr == ""


def test_the_name_changes_with_what_it_was_built_from(monkeypatch, tmp_path):
    names = [build.place().name]
    monkeypatch.setattr(torch, "__version__", "9.9")
    names.append(build.place().name)
    monkeypatch.setattr(build, "FLAGS", ("-O0",))
    names.append(build.place().name)
    monkeypatch.setattr(build, "processor", lambda: iter(["another"]))
    names.append(build.place().name)
    for name in build.SOURCES:
        (tmp_path / name).write_bytes((build.FOLDER / name).read_bytes() + b"\n")
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    names.append(build.place().name)
    assert len(set(names)) == 5


@pytest.mark.slow
def test_without_a_compiler_the_torch_kernels_run(tmp_path):
    reason = "from probe.kernels.native.build import unavailable; print(unavailable())"
    found = run(ATTEND + reason, TORCH_EXTENSIONS_DIR=str(tmp_path), CXX="no-such-compiler")
    assert found.stdout.startswith("blocked\n")
    assert found.stderr == ""
    assert not list(tmp_path.rglob("*.so"))
    assert "needs a C++ compiler: install g++" in found.stdout


@pytest.mark.slow
def test_a_build_that_fails_says_why_in_one_line_and_leaves_nothing(tmp_path):
    broken = compiler(
        tmp_path, 'case "$*" in *--version*|*-dump*) echo broken 1.0;; *) echo "error: no space" >&2; exit 1;; esac'
    )
    place = tmp_path / "builds"
    found = run(ATTEND, TORCH_EXTENSIONS_DIR=str(place), CXX=str(broken))
    assert found.stdout.startswith("blocked\n")
    said = [line for line in found.stderr.splitlines() if line]
    assert said[0].startswith("building the CPU kernels")
    assert said[-1].startswith("the CPU kernels could not be built, so slower ones run: ")
    assert said[-1].endswith("error: no space")
    assert not [path for path in place.rglob("*") if path.is_file()]


def test_the_log_is_probes_own():
    assert build.log is logging.getLogger("probe")
