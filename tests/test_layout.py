"""The shape of the project: import directions, names, links, and life beside Hugging Face's `kernels`."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import probe

ROOT = Path(__file__).parent.parent
ORDER = ("kernels", "probe", "analyses", "benchmarks", "app")
"""Each folder may import itself and those before it."""


def sources(folder: str) -> list[Path]:
    """The Python files of one folder, those behind links left to the folder they link to."""
    files = [path for path in sorted((ROOT / folder).rglob("*.py")) if "__pycache__" not in path.parts]
    if folder == "probe":
        files = [path for path in files if path.relative_to(ROOT / "probe").parts[0] not in ORDER]
    assert files, folder
    return files


def imports(path: Path) -> set[str]:
    """The modules that a file imports, in functions and for type checking too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


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
        "ProbeError", "PruneHeads", "Redistribute", "Request", "Result", "ScaleHeads", "Tokens", "UsageError", "load",
        "wrap",
    ]  # fmt: skip
    for name in probe.__all__:
        assert getattr(probe, name).__name__ == name
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


def test_a_distribution_called_kernels_breaks_nothing(beside_kernels):
    """Run from the repository root, as in a notebook there: the root comes first on the path."""
    done = beside_kernels(LOADS, ROOT)
    assert done.returncode == 0, done.stderr


def test_with_a_kernels_package_in_the_root_transformers_would_break(beside_kernels, tmp_path):
    """The reason why kernels/__init__.py must not exist, and the proof that the test above sees it."""
    root = tmp_path / "root"
    (root / "kernels").mkdir(parents=True)
    (root / "kernels" / "__init__.py").write_text("")
    done = beside_kernels("from transformers import LlamaForCausalLM", root)
    assert done.returncode != 0 and "ImportError" in done.stderr
