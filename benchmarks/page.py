"""The page of a run: its tables and pictures in Markdown, every number read from the run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from pathlib import Path

from probe.benchmarks.figures import size
from probe.benchmarks.record import Benchmark
from probe.benchmarks.tables import Table, errors, machine, seconds, times, wide
from probe.figures.pages import caption_of, save_figures
from probe.figures.pictures import save_pictures
from probe.saving.atomic import write_text

HEADINGS = {"kernels": "Attention alone", "model": "Whole models"}
WHAT = {
    "kernels": (
        "`native`, `blocked` and `triton` are this project's implementations; each is measured where it can serve. Row "
        "statistics are lse, entropy, distance, top weight and top key; column statistics are the mean attention that "
        "each key receives. `sdpa` is torch's own attention and returns no statistic. `dense eager` builds the map and "
        "computes the same statistics from it. The matrix products alone are the arithmetic that all of them contain, "
        "in the fastest way that torch has for it here."
    ),
    "model": (
        "One forward pass over a prompt of random tokens, the logits of its last position, no key-value cache. Ours "
        "returns lse, entropy, distance, windowed distance, top key and received attention of every head. The others "
        "return every layer's attention map, from which other tools compute these statistics."
    ),
}


def write(found: Benchmark, page: Path) -> Path:
    """Write the page, with pictures and their interactive pages in figures/ beside it; return its path."""
    from plotly.offline import get_plotlyjs_version

    plots = {f"bench-{suite}": plot for suite, plot in found.figures().items()}
    folder = page.parent / "figures"
    pictures = {path.stem for path in save_pictures(plots, folder)}
    # a page in the repository takes plotly from the network: its library alone is 5 MB
    library = f"https://cdn.plot.ly/plotly-{get_plotlyjs_version()}.min.js"
    save_figures(plots, folder, caption=caption_of(found.manifest), library=library)
    write_text(page, "\n".join(lines(found, pictures)) + "\n")
    return page


def elsewhere(command: str) -> str:
    """Return a command without the options that say where its run is kept and how much it prints."""
    words = iter(shlex.split(command))
    kept = []
    for word in words:
        if word in ("-o", "--out"):
            next(words, None)
        elif word not in ("-q", "--quiet") and not word.startswith("--out="):
            kept.append(word)
    return shlex.join(kept)


def lines(found: Benchmark, pictures: Iterable[str] = ()) -> list[str]:
    """Return the page, line by line; `pictures` are the names of those that could be drawn."""
    command = elsewhere(found.manifest.command.replace("__main__.py", "probe"))
    text = [
        "# Benchmarks",
        "",
        f"Written by `{command}` on {found.manifest.created[:10]}; every number is of that run, and the command run "
        "again on another machine writes that machine's page.",
        "",
        *(f"- {line}" for line in machine(found)),
        "",
        "Each case runs in its own process. The processes take turns, one repetition each, so that other load on the "
        "machine affects all cases alike; the first round is not counted. Times are medians, and multiples are "
        "quotients of medians from the same rounds. A repetition is one call, or the number of calls that fills a "
        "tenth of a second. Memory is the largest resident size (on a GPU: allocated by torch) during one repetition "
        "in a fresh process, minus the size when imports, weights and inputs were in place. In that process the C "
        "library returns freed blocks at once, because how many it would keep varies from run to run.",
    ]
    for suite in found.cases["suite"].unique():
        text += section(found, suite, f"bench-{suite}" in set(pictures))
    return text


def section(found: Benchmark, suite: str, picture: bool) -> list[str]:
    """Return the heading, picture and tables of one suite."""
    kernels = suite == "kernels"
    text = ["", f"## {HEADINGS[suite]}", "", WHAT[suite], ""]
    if picture:
        text += [f"[![{HEADINGS[suite]}](figures/bench-{suite}.png)](figures/bench-{suite}.html)", ""]
    plain = "`sdpa` alone" if kernels else "the plain forward pass"
    text += [f"Median time, and the multiple of {plain}:", ""]
    text += markdown(wide(found, suite, lambda case: f"{seconds(case['seconds'])} ({times(case['ratio'])})"))
    if kernels:
        text += ["", "Multiple of the matrix products alone:", ""]
        text += markdown(wide(found, suite, lambda case: times(case["products"])))
        text += ["", *_products(found)]
    text += ["", "Memory beyond imports, weights and inputs, and peak of the process:", ""]
    text += markdown(wide(found, suite, lambda case: f"{size(case['growth'])}, {size(case['peak'])}"))
    if not kernels:
        text += ["", *_peers(found)]
    reasons = errors(found.suite(suite))
    if reasons:
        text += ["", *(f"{name}: `{reason.replace('`', '')}`" for name, reason in reasons.items())]
    return text


def markdown(table: Table) -> list[str]:
    """Return the lines of a Markdown table; all columns but the first are numbers."""
    columns, rows = table
    head = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    return head + ["| " + " | ".join(row) + " |" for row in rows]


def _products(found: Benchmark) -> list[str]:
    """Return how the matrix products were done, and how fast."""
    text = []
    for case in found.suite("kernels").to_dict(orient="records"):
        if case["method"] != "products" or case["status"] != "ok":
            continue
        facts = json.loads(case["facts"])
        speed = facts["operations"] / case["seconds"] / 1e9
        text.append(f"- {case['length']:,} tokens: {facts['products']}, {speed:.0f} GFLOP/s")
    return ["The products were computed in the way that was fastest here:", "", *text]


def _peers(found: Benchmark) -> list[str]:
    """Return what peers are multiples of, and which kernels served ours."""
    rows = found.suite("model")
    served = {json.loads(facts).get("attention") for facts in rows[rows["method"] == "stats"]["facts"]} - {None}
    text = "Each peer takes turns with a plain forward pass of its own, of which its multiple is."
    return [f"{text} Ours ran on {', '.join(sorted(served))}." if served else text]
