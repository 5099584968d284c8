"""The wheel: made from the links' real files, and working where no checkout is near."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
LINKS = ("kernels", "analyses", "benchmarks", "app")
PARTS = ("pyproject.toml", "README.md", "LICENSE", "probe", *LINKS)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel of this checkout, made in a copy so that no build folder is left behind."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PARTS:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*command, "-w", str(output), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = output.glob("attention_probe-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The wheel, unpacked by pip into a folder of its own."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    done = subprocess.run([*command, str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def python(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(installed)}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def test_the_wheel_holds_every_source_file_once_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {"probe/py.typed"}
    for folder, inside in (("probe", "probe"), *((name, f"probe/{name}") for name in LINKS)):
        kinds = (".py", ".cpp", ".h", ".html", ".txt", ".jsonl")
        for path in (p for p in (ROOT / folder).rglob("*") if p.suffix in kinds):
            relative = path.relative_to(ROOT / folder)
            if folder != "probe" or relative.parts[0] not in LINKS:
                expected.add(f"{inside}/{relative.as_posix()}")
    assert {name for name in names if not name.startswith("probe/app/assets/")} == expected


def test_the_wheel_carries_licence_and_entry_point(wheel):
    archive = zipfile.ZipFile(wheel)
    (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    text = archive.read(metadata).decode()
    assert "License-Expression: Apache-2.0" in text and "Requires-Python: >=3.10" in text
    assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    entry = archive.read(metadata.replace("METADATA", "entry_points.txt")).decode()
    assert "probe = probe.app.cli:main" in entry


def test_the_installed_wheel_runs(installed, tmp_path):
    for arguments in (["-m", "probe", "--help"], [str(installed / "bin" / "probe"), "heads", "--help"]):
        done = python(installed, tmp_path, *arguments)
        assert done.returncode == 0 and "Usage: probe" in done.stdout, done.stderr
    code = """
import sys, torch, probe
from probe.kernels.attend import attend
from probe.analyses.heads.retrieval import RetrievalHeads
assert probe.__file__.startswith(sys.argv[1]) and attend.__module__ == "probe.kernels.attend"
query = torch.zeros(1, 1, 4, 8)
assert attend(query, query, torch.ones(1, 1, 4, 8))[0].eq(1).all()
print("works")
"""
    done = python(installed, tmp_path, "-c", code, str(installed))
    assert done.stdout == "works\n", done.stderr
