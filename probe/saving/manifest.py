"""The manifest of a run states everything that decides its numbers, and what the run cost.

`Manifest.identity` holds what decides the numbers: two runs with equal identities give equal numbers. The other fields
(the model's name as typed, seconds, memory, command line, time of day) may differ between them.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe.errors import ProbeError
from probe.saving.atomic import write_text
from probe.saving.jsonable import decode, dumps, encode, plain

if TYPE_CHECKING:
    from probe.models import Model
    from probe.tokens import Tokens

SCHEMA = 2
"""Version of the saved form; `Manifest.load` refuses every other version."""

INCIDENTAL = frozenset(
    {"name", "measuring", "outside", "passes", "peak_memory", "peak_device_memory", "command", "created"}
)
"""The fields that may differ between runs with equal numbers."""

RECORDED_LIBRARIES = ("attention-probe", "torch", "transformers", "tokenizers", "numpy")
"""Distributions whose version can change a number. Python's version is recorded too: its documentation is the default
haystack."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The provenance of one result.

    analysis: what was run, such as "retrieval_heads".
    name, model: what the user typed, and the model id or path that it resolved to.
    revision, weights_hash: the commit where one is known, and the hash of the weights themselves.
    dtype, device, hardware, attention: of the forward passes; `attention` names the implementation that served.
    prompts: a hash of the token ids of each prompt, in order.
    bos: whether a BOS token was put in front; None where no prompt was made from text.
    options, interventions: as JSON, enough to repeat the run.
    measuring: seconds of measuring, over all processes that worked on the run. outside: seconds that the last of them
        spent beside it, on starting, loading and drawing.
    passes: `measuring` over the seconds of plain prefill and decode of the same tokens; None without a model.
    peak_memory: bytes, the most this process had resident; peak_device_memory: bytes that torch allocated on the GPU.
    """

    schema: int = SCHEMA
    analysis: str
    name: str
    model: str
    revision: str | None
    weights_hash: str
    dtype: str
    device: str
    hardware: str
    attention: str
    seed: int
    bos: bool | None
    prompts: tuple[str, ...]
    options: dict[str, Any]
    interventions: tuple[Any, ...]
    versions: dict[str, str]
    measuring: float
    outside: float
    passes: float | None
    peak_memory: int
    peak_device_memory: int | None
    command: str
    created: str

    def identity(self) -> dict[str, Any]:
        """Return the fields that decide the numbers."""
        return {name: value for name, value in vars(self).items() if name not in INCIDENTAL}

    def fingerprint(self) -> str:
        """Return sixteen hex digits of the identity: equal for runs that must give equal numbers."""
        return hashlib.sha256(json.dumps(encode(self.identity()), sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, and `fingerprint`, as plain JSON values."""
        return plain(vars(self)) | {"fingerprint": self.fingerprint()}

    def save(self, folder: str | Path) -> Path:
        """Write manifest.json into the folder; its path."""
        path = Path(folder) / "manifest.json"
        write_text(path, dumps(encode(vars(self), "manifest"), indent=1) + "\n")
        return path

    @classmethod
    def load(cls, folder: str | Path) -> Manifest:
        """Return the manifest saved in the folder."""
        path = Path(folder) / "manifest.json"
        try:
            content = decode(json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            raise ProbeError(f"expected a saved run, got {folder}, which holds no manifest.json") from None
        except ValueError:
            raise ProbeError(f"{path} is not valid JSON; run the analysis again") from None
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            command = content.get("command", "") if isinstance(content, dict) else ""
            again = f": {command}" if command else ""
            raise ProbeError(
                f"{folder} was written by another version of probe, which this one cannot read; repeat its command "
                f"with a new --out{again}"
            )
        names = {field.name for field in fields(cls)}
        if content.keys() != names:
            raise ProbeError(f"{path} has other fields than expected: {', '.join(sorted(content.keys() ^ names))}")
        for name in ("prompts", "interventions"):
            content[name] = tuple(content[name])
        return cls(**content)


def manifest_of(
    model: Model | None,
    *,
    analysis: str,
    options: Mapping[str, Any],
    seed: int = 0,
    interventions: Iterable[Any] = (),
    prompts: Iterable[Tokens | str] = (),
    bos: bool | None = None,
    measuring: float = 0.0,
    outside: float = 0.0,
    passes: float | None = None,
) -> Manifest:
    """Return the manifest of a run that ends now.

    prompts: Tokens or their hashes. interventions: those named here are recorded before those in force on the model.
    A run without a model has "none" for it, and the CPU for a device.
    """
    import torch

    about: dict[str, Any] = {"name": "none", "model": "none", "revision": None, "weights_hash": "", "dtype": "float32"}
    device, described = torch.device("cpu"), list(interventions)
    if model is not None:
        device = model.device
        described += [each.describe() for each in model.interventions]
        about = {
            "name": model.name,
            "model": model.name if model.source is None else model.source.model,
            "revision": None if model.source is None else model.source.revision,
            "weights_hash": model.weights_hash,
            "dtype": str(model.dtype).removeprefix("torch."),
        }
    return Manifest(
        analysis=analysis,
        **about,
        device=device.type,
        hardware=hardware(device),
        attention="none" if model is None else attention(model),
        seed=seed,
        bos=bos,
        prompts=tuple(prompt if isinstance(prompt, str) else prompt.hash for prompt in prompts),
        options=decode(encode(options, "options")),
        interventions=tuple(decode(encode(each, "interventions")) for each in described),
        versions=versions(),
        measuring=measuring,
        outside=outside,
        passes=passes,
        peak_memory=peak_memory(),
        peak_device_memory=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def attention(model: Model) -> str:
    """Name of the attention implementation that serves this model's forward passes, such as "probe/blocked"."""
    import torch

    from probe.kernels.attend import chosen
    from probe.kernels.contract import Request

    options = {"device": model.device, "dtype": model.dtype}
    query = torch.zeros(1, model.n_heads, 1, model.head_dim, **options)
    key = torch.zeros(1, model.n_kv_heads, 1, model.head_dim, **options)
    return f"probe/{chosen(query, key, request=Request(lse=True), implementation=model.implementation)}"


def versions(*more: str) -> dict[str, str]:
    """Return the versions of Python and of the libraries that can change a number, or "not installed".

    more: names of further libraries.
    """
    found = {"python": platform.python_version()}
    for name in (*RECORDED_LIBRARIES, *more):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def hardware(device: Any) -> str:
    """Return what the arithmetic ran on, for it decides rounding: the GPU, or the CPU's vector units and threads."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{device.type} {platform.machine()}"
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def peak_memory() -> int:
    """Return the peak resident memory of this process in bytes, weights included."""
    if sys.platform == "linux":  # ru_maxrss survives exec there, and would report the parent's peak
        status = Path("/proc/self/status").read_text()
        return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
