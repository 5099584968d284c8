"""The plan of `probe bench`: the cases, which of them take turns, and what they are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from probe.errors import UsageError

Suite = Literal["kernels", "model", "all"]
PEER_ROUNDS = 3
"""The most timed rounds of a case that takes minutes: ways of reading attention that build every map."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides what is measured.

    lengths: tokens. repeats: timed rounds, after one that is not counted. threads: of each case. batch, heads,
    kv_heads, head_dim: shapes of the kernel cases. model, revision: of the model cases. memory_limit: bytes that one
    case may take. timeout: seconds that one repetition may take. only: methods and implementations to measure beside
    the plain case, empty for all.
    """

    suite: Suite = "kernels"
    lengths: tuple[int, ...] = (512, 2048, 4096, 8192)
    repeats: int = 7
    threads: int
    dtype: str = "float32"
    device: str = "cpu"
    batch: int = 1
    heads: int = 9
    kv_heads: int = 3
    head_dim: int = 64
    model: str = "llama"
    revision: str | None = None
    memory_limit: int = 20 * 10**9
    timeout: float = 600.0
    seed: int = 0
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise UsageError(f"--heads must be a multiple of --kv-heads, got {self.heads} and {self.kv_heads}")
        if not self.lengths or min(self.lengths) < 2:
            raise UsageError(f"--lengths: expected numbers of tokens from 2 on, got {self.lengths}")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way of computing attention.

    method: which function of kernel_cases or model_cases builds it. implementation: a name in `IMPLEMENTATIONS` where
    the method is `attend`. statistics: which of `kernel_cases.requests` it returns.
    """

    name: str
    method: str
    implementation: str = ""
    statistics: str = ""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Cases that take turns, each in its own process; the first is what the others are compared with.

    peer: whether the last case may need far more memory than there is; if it fails, the others are not measured again.
    """

    suite: str
    length: int
    cases: tuple[Case, ...]
    rounds: int
    peer: bool = False

    @property
    def name(self) -> str:
        """Return the group's name, such as "kernels 2048", or "model 2048 nnsight" for a peer's."""
        return f"{self.suite} {self.length}" + (f" {self.cases[-1].method}" if self.peer else "")


SDPA = Case(name="sdpa alone", method="sdpa")
PRODUCTS = Case(name="matrix products alone", method="products")
DENSE = Case(name="dense eager, rows and columns", method="dense", statistics="columns")
FLEX = (
    Case(name="flex_attention", method="flex"),
    Case(name="flex_attention with lse", method="flex", statistics="lse"),
)
STATISTICS = {
    "rows": "row statistics",
    "columns": "row and column statistics",
    "sets": "rows, columns, windowed distance, 4 key sets",
}
PLAIN = Case(name="plain forward (sdpa)", method="plain")
OURS = Case(name="probe, statistics of all heads", method="stats", implementation="auto")
ACT = Case(name="probe, ACT in 30 heads", method="act", implementation="auto")
PEERS = (
    Case(name="transformers, output_attentions", method="eager"),
    Case(name="TransformerLens, all patterns", method="bridge"),
    Case(name="nnsight, all patterns", method="nnsight"),
)


def groups(settings: Settings, implementations: Sequence[str]) -> list[Group]:
    """Return the groups to measure, in order; `implementations` are those that can serve the kernel cases here."""
    known = {case.method for case in (SDPA, PRODUCTS, DENSE, *FLEX, PLAIN, OURS, ACT, *PEERS)} | set(implementations)
    wrong = [name for name in settings.only if name not in known]
    if wrong:
        raise UsageError(f"--case: expected one of {', '.join(sorted(known))}, got {wrong[0]}")
    planned: list[Group] = []
    if settings.suite in ("kernels", "all"):
        ours = tuple(
            Case(name=f"{name}: {words}", method="attend", implementation=name, statistics=statistics)
            for name in implementations
            for statistics, words in STATISTICS.items()
        )
        cases = (SDPA, PRODUCTS, *ours, DENSE, *FLEX)
        planned += [
            Group(suite="kernels", length=length, cases=cases, rounds=settings.repeats) for length in settings.lengths
        ]
    if settings.suite in ("model", "all"):
        for length in settings.lengths:
            planned.append(Group(suite="model", length=length, cases=(PLAIN, OURS, ACT), rounds=settings.repeats))
            rounds = min(settings.repeats, PEER_ROUNDS)
            planned += [
                Group(suite="model", length=length, cases=(PLAIN, peer), rounds=rounds, peer=True) for peer in PEERS
            ]
    kept = [chosen for group in planned if (chosen := _only(group, settings.only)) is not None]
    if not kept:
        raise UsageError(f"--case {', '.join(settings.only)} leaves nothing of --suite {settings.suite}")
    return kept


def _only(group: Group, names: Sequence[str]) -> Group | None:
    """Return the group with its plain case and those named; None if only the plain case is left."""
    kept = [case for case in group.cases[1:] if not names or {case.method, case.implementation} & set(names)]
    return replace(group, cases=(group.cases[0], *kept)) if kept else None
