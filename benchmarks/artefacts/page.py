"""The page that says what the Triton kernels compile to, docs/kernels.md, written from artefacts and never by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from probe.benchmarks.artefacts.build import Artefact
from probe.benchmarks.artefacts.cases import PACK, TOKENS
from probe.benchmarks.artefacts.predict import DEVICES, apart, busy, causal_pairs, overlapped, swept_pairs
from probe.benchmarks.artefacts.sass import PIPES

ROWS_TARGET, COLUMNS_TARGET = 1.15, 1.6
EDGES = "edges_kernel"
TEXTS = (1024, 4096, 16_384, 65_536)

HEAD = """# What the Triton kernels compile to

Written by `python -m probe.benchmarks.artefacts`; do not edit. {versions}.

**Nothing here ran on a GPU.** Every kernel is compiled to machine code for three devices, and the code is read: how
many registers a thread takes, how much shared memory a program, whether anything spills, and which instructions stand
in the main loop. The overhead at the end is predicted from those, and is no measurement. Inputs are float16, 8 query
heads on 2 KV heads, causal, {tokens:,} tokens. Tiles are those that `attend` chooses for the device.

Cases: *plain* is the forward pass without statistics, which is plain flash attention, in the tiles that it shares with
statistics, and in two wider ones that would suit it alone; *rows* adds lse, entropy, distance, windowed distance and
the largest weight with its key; *rows and n sets* also the mass of n key sets; *received* is the second sweep, which
gives what each key receives, with a kernel for the rows at the edges of the mask; *pooled*, *tile*, *top 8* (the
largest weights after the first), *partial* (the partial sums of four key sets) and *decode* (*rows* for one query, its
keys split over programs, and the kernel that puts the parts together) are the others.

## Resources
"""

MODEL = """
## The main loop

Instructions of a thread for each query-key pair, by what executes them: tensor cores, exponential unit, FP32, integers
with comparisons and conversions, memory, and the rest (control, barriers, arithmetic for the whole warp, shuffles). A
matrix product of a whole tile is one instruction for a warp, or four warps, and so a fraction. Branches that a tile may
skip are counted as if none did: those of key sets, for tiles without members, and those of *pooled*, for tiles that lie
wholly inside the mask.
"""

PREDICTION = """
## Predicted overhead

A multiprocessor does this much in a cycle (CUDA C++ Programming Guide, NVIDIA's whitepapers, and for the B200's tensor
cores FlashAttention-4):

{devices}

A pass through the main loop keeps each part busy for so many cycles. If the tensor cores stand still while anything
else runs, it takes as long as they and the busiest of the others together (*apart*). That is the prediction. If all
parts worked at once, it would take as long as the busiest (*overlapped*), which is here as the bound. Left out:
latency, barriers, the memory of the device, what a product reads from shared memory by itself, and tiles at the edge of
the mask. Cycles are for 1,000 pairs. What statistics are compared with is plain attention in the fastest of its tiles
that fit and do not spill.

Why *apart*: what papers measured of plain attention, forward, half precision, long texts, as cycles of the clock at
which a device has its nominal speed. Triton's code takes longer than *apart*, by a fifth to nearly as much again. Code
by hand comes to it on Hopper; on Blackwell, with polynomials for exponentials, it lies between the two.

{published}
"""

# TFLOP/s that papers give for plain attention: FlashAttention-3 (Shah et al. 2024, figure 5, 16,384 tokens),
# FlashAttention-4 (Zadouri et al. 2026, abstract: up to 1,613, and up to 2.7 times as fast as Triton).
PUBLISHED = (
    (90, 64, "Triton", 403.0),
    (90, 64, "FlashAttention-3", 497.0),
    (90, 128, "Triton", 395.0),
    (90, 128, "FlashAttention-3", 648.0),
    (100, 128, "Triton", 1613 / 2.7),
    (100, 128, "FlashAttention-4", 1613.0),
)
# Dense TFLOP/s in half precision, from NVIDIA's data sheets.
NOMINAL = {90: 989.4, 100: 2250.0}

WHOLE = """
Those are of the main loops. A causal text has tiles at the edge of the mask as well, fewer of all the longer it is, and
the column sweep has more of them than plain attention: a pass that needs no mask is 64 to 256 rows high and 128 or 256
keys wide. Plain and received, apart, with all tiles that both compute, those of the sweep's edges at the cost of their
own kernel, and those of plain attention's at the cost of its main loop, which spares it. Edges have 64 rows a tile, and
it is not counted that the B200's tensor cores may be half idle then:
"""

TRIED = """
What it took, and what stands in the way:

- Blackwell's products run by themselves, and no product waits for the sums of a tile. Triton therefore puts the sums
  off to the next pass of the loop and keeps the weights and their logarithms until then, 128 registers a thread, so
  that tiles of 128 x 128 spilled. Now the factor that shrinks the output waits for the sums (`rows.after`): nothing
  spills, and a head size of 128 needs no narrower tiles.
- Blackwell adds and multiplies two floats with one instruction where they lie in registers side by side. Sums are
  kept for four columns side by side (`Tiles.slots`, `Tiles.run`), and nearly all of them are such pairs: statistics of
  rows there cost next to nothing.
- The column sweep has one exponential for each pair, as plain attention has, and exponentials bind both: on the H100 a
  quarter of them (5 of 16 at a head size of 64) are polynomials, on the B200 3 of 8, as in FlashAttention-4 but of
  degree 4, so that sums keep five digits. With more of them, instructions would bind. Several tiles a pass share what a
  pass costs. Rows where tiles need a mask have a kernel of their own (`edges.py`): masks held so many registers that
  tiles of 256 keys spilled, whose products take half as many instructions. The limit of 1.5 is that of products, which
  do not bind there: all parts at work at once, the H100 stays near 1.7 at 64, and the B200 between 1.6 and 1.7.
- The stride of a row is a constant of the compiled kernel: addresses within a tile then take few registers and
  instructions. Row statistics on the H100 at 64 come within the target both ways for it, where the loop is bound by how
  many instructions start, and plain attention by its exponentials.
- Key sets: the weights of members are another product, and what rounding to half precision took from the weights a
  third.
"""


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table, all columns but the first set to the right."""
    head = list(head)
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def device_name(artefact: Artefact) -> str:
    """Such as H100 (9.0)."""
    major, minor = divmod(artefact.capability, 10)
    return f"{DEVICES[artefact.capability].name} ({major}.{minor})"


def resources(artefacts: list[Artefact]) -> str:
    """Registers, shared memory and spills of every kernel."""
    rows = []
    for a in artefacts:
        tile = f"{a.constants['ROWS']} x {a.constants['COLS']}" if "ROWS" in a.constants else ""
        limit = DEVICES[a.capability].limit
        shared = f"{a.shared / 1024:.0f} of {limit / 1024:.0f}"
        cells = (f"{a.case}: `{a.kernel}`", device_name(a), a.width, tile, a.warps, a.registers, shared, a.spilled)
        rows.append((*cells, a.copies if a.loops else "no loop"))
    head = ("kernel", "device", "head size", "tile", "warps", "registers", "shared memory, KiB", "bytes spilled")
    return table((*head, "asynchronous copies in the loop"), rows)


def loops(artefacts: list[Artefact]) -> str:
    """Instructions for each pair in the main loops."""
    rows = []
    for a in artefacts:
        if a.loops:
            each = [32 * a.warps * a.mix[pipe] / a.pairs for pipe in PIPES]
            name = f"{a.case}: `{a.kernel}`"
            rows.append([name, device_name(a), a.width, *(f"{n:.2f}" for n in each), f"{sum(each):.2f}"])
    names = ("tensor", "exponential", "FP32", "integer", "memory", "other", "all")
    return table(("kernel", "device", "head size", *names), rows)


def devices() -> str:
    """What the prediction takes a multiprocessor to do."""
    rows = [[d.name, f"{d.multiplies:,}", d.exponentials, d.fp32, d.alu, d.warps, d.shared] for d in DEVICES.values()]
    head = ("device", "multiply-adds on tensor cores", "exponentials", "FP32", "integer", "instructions of warps")
    return table((*head, "bytes of shared memory"), rows)


def best(artefacts: list[Artefact], capability: int, width: int, least: Callable[[Artefact], float]) -> Artefact:
    """Plain attention in whichever tiles are predicted to be fastest, of those that fit and do not spill."""
    fit = DEVICES[capability].limit
    plain = [a for a in artefacts if a.case.startswith("plain") and (a.capability, a.width) == (capability, width)]
    return min((a for a in plain if not a.spilled and a.shared <= fit), key=least)


def published() -> str:
    """What papers measured of plain attention, in the units of the prediction."""
    rows = []
    for capability, width, name, speed in PUBLISHED:
        device = DEVICES[capability]
        nominal = 1000 * 2 * width / device.multiplies  # cycles of the products alone
        rows.append([device.name, width, name, f"{speed:.0f}", f"{nominal * NOMINAL[capability] / speed:.0f}"])
    return table(("device", "head size", "kernel", "TFLOP/s", "cycles for 1,000 pairs"), rows)


def overheads(artefacts: list[Artefact]) -> str:
    """Predicted cycles of plain attention, and how many times as many statistics take, both ways of counting."""
    by_case = main_kernels(artefacts)
    rows = []
    for (case, capability, width), plain in by_case.items():
        if case != "plain":
            continue
        others = [by_case[name, capability, width] for name in ("rows", "rows and 4 sets", "received")]
        cells: list[object] = [device_name(plain), width]
        for least in (apart, overlapped):
            base = best(artefacts, capability, width, least)
            with_rows, with_sets, received = (least(other) / least(base) for other in others)
            cells += [f"{least(base):.0f}"] if least is apart else [f"{least(base):.0f}, {busiest(base)}"]
            cells += [f"{with_rows:.2f}", f"{with_sets:.2f}", f"{1 + received:.2f}", f"{with_rows + received:.2f}"]
        rows.append(cells)
    ratios = ("rows", "rows and 4 sets", "plain and received", "rows and received")
    head = ["device", "head size", "plain, apart", *(f"{name}, apart" for name in ratios)]
    return table([*head, "plain, overlapped", *(f"{name}, overlapped" for name in ratios)], rows)


def main_kernels(artefacts: list[Artefact]) -> dict[tuple[str, int, int], Artefact]:
    """The kernel that does most of each case, by case, capability and width."""
    return {(a.case, a.capability, a.width): a for a in artefacts if a.loops and a.kernel != EDGES}


def whole_texts(artefacts: list[Artefact]) -> str:
    """How many times as long as plain attention it takes with columns, tiles at the edge of the mask counted too."""
    by_case = main_kernels(artefacts)
    rows = []
    for edges in (a for a in artefacts if a.kernel == EDGES):
        where = edges.capability, edges.width
        base, sweep = best(artefacts, *where, apart), by_case[("received", *where)]
        cells: list[object] = [device_name(edges), edges.width]
        for tokens in TEXTS:
            whole, cut = swept_pairs(edges, tokens)
            columns = whole * apart(sweep) + cut * apart(edges)
            cells.append(f"{1 + columns / (causal_pairs(base, tokens, pack=PACK) * apart(base)):.2f}")
        rows.append(cells)
    return table(("device", "head size", *(f"{tokens:,} tokens" for tokens in TEXTS)), rows)


def busiest(artefact: Artefact) -> str:
    """The part of the multiprocessor that the main loop waits for."""
    cycles = busy(artefact)
    return max(cycles, key=cycles.__getitem__)


def verdict(artefacts: list[Artefact]) -> str:
    """Which targets are met both ways of counting, which only by the prediction, and which are missed."""
    by_case = main_kernels(artefacts)
    lines = []
    for name, target, case in (
        ("row statistics", ROWS_TARGET, "rows"),
        ("column statistics", COLUMNS_TARGET, "received"),
    ):
        found = []
        for other, capability, width in by_case:
            if other == "plain":
                extra = 1 if case == "received" else 0
                statistic = by_case[case, capability, width]
                predicted, bound = (
                    extra + least(statistic) / least(best(artefacts, capability, width, least))
                    for least in (apart, overlapped)
                )
                met = "met" if max(predicted, bound) <= target else "met apart" if predicted <= target else "missed"
                found.append(f"{DEVICES[capability].name} {width}: {predicted:.2f}, {met} (overlapped {bound:.2f})")
        lines.append(f"- {name}, at most {target}x of plain attention: {'; '.join(found)}.")
    return "\n".join(lines) + "\n"


def page(artefacts: list[Artefact], versions: str) -> str:
    """The whole page, Markdown."""
    parts = [HEAD.format(versions=versions, tokens=TOKENS), resources(artefacts), MODEL, loops(artefacts)]
    parts += [
        PREDICTION.format(devices=devices(), published=published()),
        overheads(artefacts),
        "\nAgainst the targets:\n\n",
        verdict(artefacts),
        WHOLE,
        whole_texts(artefacts),
        TRIED,
    ]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)
