"""What a run was: everything that decides its numbers, and what it cost.

`Manifest.identity` holds the former: two runs with equal identities give equal numbers. The rest (the model's name as
typed, elapsed seconds, memory, command line, time of day) may differ between them.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import sys
import time
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

SCHEMA = 1
"""Version of the saved form. A reader refuses a version that it does not know."""

INCIDENTAL = frozenset({"name", "elapsed", "peak_memory", "peak_device_memory", "command", "created"})
"""The fields that may differ between runs with equal numbers."""

RECORDED_LIBRARIES = ("attention-probe", "torch", "transformers", "tokenizers", "numpy")
"""The distributions whose version can change a number; Python's own is recorded beside them (default haystack)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Provenance of one result.

    analysis: what was run, such as "retrieval_heads".
    name, model: what the user typed, and the model id or path that it resolved to.
    revision, weights_hash: the commit where one is known, and the hash of the weights themselves.
    dtype, device, hardware, attention: of the forward passes; `attention` names the implementation that served.
    prompts: a hash of the token ids of each prompt, in order.
    bos: whether a BOS token was put in front; None where no prompt was made from text.
    options, interventions: as JSON, enough to repeat the run.
    elapsed: seconds, over all processes that worked on the run, loading the model not included.
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
    elapsed: float
    peak_memory: int
    peak_device_memory: int | None
    command: str
    created: str

    def identity(self) -> dict[str, Any]:
        """The fields that decide the numbers."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in INCIDENTAL}

    def fingerprint(self) -> str:
        """Sixteen hex digits of the identity: equal for runs that must give equal numbers."""
        return hashlib.sha256(json.dumps(encode(self.identity()), sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """All fields, and `fingerprint`, as plain JSON values."""
        return plain({field.name: getattr(self, field.name) for field in fields(self)}) | {
            "fingerprint": self.fingerprint()
        }

    def save(self, folder: str | Path) -> Path:
        """Write manifest.json into the folder; its path."""
        path = Path(folder) / "manifest.json"
        content = encode({field.name: getattr(self, field.name) for field in fields(self)}, "manifest")
        write_text(path, dumps(content, indent=1) + "\n")
        return path

    @classmethod
    def load(cls, folder: str | Path) -> Manifest:
        """The manifest saved in the folder."""
        path = Path(folder) / "manifest.json"
        try:
            content = decode(json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            raise ProbeError(f"expected a saved run, got {folder}, which holds no manifest.json") from None
        except ValueError:
            raise ProbeError(f"{path} is not valid JSON; run the analysis again") from None
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            found = content.get("schema") if isinstance(content, dict) else None
            raise ProbeError(f"{path} has schema {found}, expected {SCHEMA}: read it with the version that wrote it")
        names = {field.name for field in fields(cls)}
        if content.keys() != names:
            raise ProbeError(f"{path} has other fields than expected: {', '.join(sorted(content.keys() ^ names))}")
        for name in ("prompts", "interventions"):
            content[name] = tuple(content[name])
        return cls(**content)


class Recorder:
    """Measures a run from construction on, and writes its manifest at the end.

    `before` is the time that earlier processes spent on the same run (`RunFolder.seconds`). Interventions that are in
    force on the model are recorded beside those that are named.
    """

    def __init__(
        self,
        model: Model,
        *,
        analysis: str,
        options: Mapping[str, Any],
        seed: int = 0,
        interventions: Iterable[Any] = (),
        before: float = 0.0,
    ) -> None:
        self._model = model
        self._analysis = analysis
        self._options = decode(encode(options, "options"))
        described = [*interventions, *(each.describe() for each in model.interventions)]
        self._interventions = tuple(decode(encode(each, "interventions")) for each in described)
        self._seed = seed
        self._before = before
        self._start = time.monotonic()

    def manifest(self, *, prompts: Iterable[Tokens | str] = (), bos: bool | None = None) -> Manifest:
        """The manifest of the run so far; `prompts` are Tokens or their hashes."""
        import torch

        model = self._model
        hashes = tuple(prompt if isinstance(prompt, str) else prompt.hash for prompt in prompts)
        cuda = model.device.type == "cuda"
        return Manifest(
            analysis=self._analysis,
            name=model.name,
            model=model.name if model.source is None else model.source.model,
            revision=None if model.source is None else model.source.revision,
            weights_hash=model.weights_hash,
            dtype=str(model.dtype).removeprefix("torch."),
            device=model.device.type,
            hardware=hardware(model.device),
            attention=attention(model),
            seed=self._seed,
            bos=bos,
            prompts=hashes,
            options=self._options,
            interventions=self._interventions,
            versions=versions(),
            elapsed=self._before + time.monotonic() - self._start,
            peak_memory=peak_memory(),
            peak_device_memory=torch.cuda.max_memory_allocated(model.device) if cuda else None,
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


def versions() -> dict[str, str]:
    """Version of Python and of each library that can change a number; "not installed" for a bare checkout."""
    found = {"python": platform.python_version()}
    for name in RECORDED_LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def hardware(device: Any) -> str:
    """What the arithmetic ran on, where it decides rounding: the GPU's name, or the CPU's vector units and threads."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{device.type} {platform.machine()}"
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def peak_memory() -> int:
    """The most memory that this process has had resident so far, in bytes; the weights are in it."""
    if sys.platform == "linux":  # ru_maxrss survives exec there, and would report the parent's peak
        status = Path("/proc/self/status").read_text()
        return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
