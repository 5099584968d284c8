"""The plan of `probe bench`: the cases, which of them take turns, and what they are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from probe.errors import UsageError
from probe.frame import settings as frame
from probe.frame.settings import setting

SUITES = ("kernels", "model", "all")
PEER_ROUNDS = 3
"""The most timed rounds of a case that takes minutes: ways of reading attention that build every map."""


@dataclass(frozen=True, kw_only=True)
class Settings(frame.Settings):
    """Everything that decides what is measured."""

    suite: str = setting(
        "kernels", "Suite to measure: attention alone, forward passes of --model, or both", choices=SUITES
    )
    lengths: tuple[int, ...] = setting((512, 2048, 4096, 8192), "Lengths of the texts, in tokens", least=2)
    repeats: int = setting(
        7, f"Timed rounds, after one that is not counted. Peers that build every map run {PEER_ROUNDS} at most", least=1
    )
    threads: int = setting(help="Threads of each case", least=1, shown="torch's number")
    dtype: str = setting("float32", "Precision of inputs and weights", choices=("float32", "bfloat16", "float16"))
    device: str = "cpu"
    batch: int = setting(1, "Texts in a batch, in the kernel cases", least=1)
    heads: int = setting(9, "Query heads of the kernel cases", least=1)
    kv_heads: int = setting(3, "Key-value heads of the kernel cases", least=1)
    head_dim: int = setting(64, "Head size of the kernel cases", least=1)
    model: str = "llama"
    revision: str | None = None
    memory_limit: int = setting(
        20 * 10**9,
        "Memory that one case may take. A case that needs more is ended and reported as such",
        metavar="SIZE",
        shown="20GB",
    )
    timeout: float = setting(
        600.0,
        "Seconds that one repetition may take. A case that takes longer is ended and reported as such",
        above=0,
        metavar="SECONDS",
    )
    only: tuple[str, ...] = setting(
        (),
        "Measure this case beside the plain one. Kernels: native, blocked, triton, products, dense, flex. Models: "
        "stats, act, eager, bridge, nnsight",
        spelling="--case",
        metavar="NAME",
        shown="all",
    )

    def check(self) -> None:
        """Raise UsageError where a KV head would have no whole number of query heads, or no text a length."""
        if self.heads % self.kv_heads:
            raise UsageError(f"--heads must be a multiple of --kv-heads, got {self.heads} and {self.kv_heads}")
        if not self.lengths:
            raise UsageError("--lengths: expected numbers of tokens, got none")


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
