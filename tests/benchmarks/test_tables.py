"""What people read of a run in which cases failed: tables, page and figure."""

import pandas as pd
import pytest

from probe.benchmarks import page, run
from probe.benchmarks.crew import Measured
from probe.benchmarks.figures import size
from probe.benchmarks.plan import OURS, PEERS, PLAIN, Group, Settings
from probe.benchmarks.record import Benchmark
from probe.benchmarks.tables import errors, long, seconds, wide

NO_MEMORY = "out of memory at 20 GB"


@pytest.fixture(scope="module")
def found() -> Benchmark:
    """Two lengths of a model: one peer runs out of memory, one fails, one is well."""
    settings = Settings(threads=2, lengths=(512, 2048), suite="model", model="llama")
    plan, done = [], {}

    def add(length, *cases, peer=False):
        group = Group(suite="model", length=length, cases=tuple(case.case for case in cases), rounds=1, peer=peer)
        plan.append(group)
        done[group.name] = {"cases": [case.record() for case in cases]}

    def well(case, taken):
        return Measured(case, seconds=[taken], held=10**9, peak=15 * 10**8, limit=20 * 10**9, facts={"attention": "x"})

    add(512, well(PLAIN, 2.0), well(OURS, 2.04))
    add(2048, well(PLAIN, 8.0), well(OURS, 8.4))
    add(512, Measured(PEERS[0], status="out of memory", reason=NO_MEMORY, limit=20 * 10**9), peer=True)
    add(2048, Measured(PEERS[0], status="skipped", reason=f"{NO_MEMORY} with 512 tokens already"), peer=True)
    for length in (512, 2048):
        add(length, Measured(PEERS[1], status="error", reason="ValueError: `no` map"), peer=True)
        add(length, well(PLAIN, 4.0), well(PEERS[2], 12.0), peer=True)
    return Benchmark(
        manifest=run.manifest(Settings(threads=2, lengths=(512, 2048)), seconds=1.0, sources="x"),
        machine=run.machine(settings),
        checked={"tests": "tests/kernels", "passed": 7, "seconds": 2.0, "difference": {"native": 1e-7}},
        refused={"triton": "runs on GPUs"},
        cases=run.table(plan, done),
        times=pd.DataFrame([{"group": "model 512", "case": "x", "round": 1, "start": 0.0, "seconds": 1.0}]),
    )


def test_a_row_for_each_case_with_its_own_multiple(found):
    columns, rows = long(found, "model")
    cells = {(row[0], row[1]): dict(zip(columns, row, strict=True)) for row in rows}
    assert cells["", OURS.name]["of plain"] == "1.05x" and cells["", OURS.name]["median"] == "8.4 s"
    assert cells["", PEERS[2].name]["of plain"] == "3.00x"  # of the plain pass beside it, not of the first one
    assert cells["512", PLAIN.name]["memory"] == "500 MB" and cells["512", PLAIN.name]["peak"] == "1.5 GB"
    medians = [row[2] for row in rows if row[1] == PEERS[0].name]
    assert medians == [NO_MEMORY, f"not tried ({NO_MEMORY} before)"]
    assert sum(row[1] == PLAIN.name for row in rows) == 2


def test_lengths_stand_side_by_side(found):
    columns, rows = wide(found, "model", lambda case: seconds(case["seconds"]))
    assert columns == ["case", "512 tokens", "2,048 tokens"]
    assert dict((row[0], row[1:]) for row in rows) == {
        PLAIN.name: ["2 s", "8 s"],
        OURS.name: ["2.04 s", "8.4 s"],
        PEERS[0].name: [NO_MEMORY, f"not tried ({NO_MEMORY} before)"],
        PEERS[1].name: ["error", "error"],
        PEERS[2].name: ["12 s", "12 s"],
    }


def test_the_page_tells_what_failed_and_what_was_checked(found):
    text = "\n".join(page.lines(found, ["bench-model"]))
    assert f"| {PEERS[0].name} | {NO_MEMORY} | not tried ({NO_MEMORY} before) |" in text
    assert f"{PEERS[1].name}: `ValueError: no map`" in text and errors(found.suite("model")) == {
        PEERS[1].name: "ValueError: `no` map"
    }
    assert "7 tests of tests/kernels passed in 2 s" in text and "native 1.0e-07" in text
    assert "not here: triton, which runs on GPUs" in text and "Ours ran on x." in text
    assert "figures/bench-model.png" in text and "figures/bench" not in "\n".join(page.lines(found))


def test_the_figure_shows_times_memory_and_crosses(found):
    plot = found.figures()["model"]
    figure = plot.figure
    lines = {(trace.name, trace.yaxis): list(trace.y) for trace in figure.data if trace.mode == "lines+markers"}
    assert lines[OURS.name, "y"] == pytest.approx([1.02, 1.05]) and lines[PEERS[2].name, "y"] == [3.0, 3.0]
    assert lines[PLAIN.name, "y2"] == [1.5e9, 1.5e9]
    crosses = [trace for trace in figure.data if trace.mode == "markers"]
    assert [(list(trace.x), trace.yaxis) for trace in crosses] == [([512, 2048], "y2")]
    assert min(crosses[0].y) >= 20e9
    assert "1.05x the time of a plain forward" in plot.headline


@pytest.mark.parametrize(
    "value, words", [(6.1e-4, "0.61 ms"), (0.0431, "43.1 ms"), (2.345, "2.35 s"), (123.4, "123 s")]
)
def test_seconds(value, words):
    assert seconds(value) == words


@pytest.mark.parametrize("value, words", [(0, "0 B"), (1500, "1.5 kB"), (98_362_432, "98.4 MB"), (17.28e9, "17.3 GB")])
def test_sizes(value, words):
    assert size(value) == words


def test_a_page_leaves_out_where_its_run_was_kept():
    command = "probe bench --suite kernels -o /tmp/here --quiet --page docs/benchmarks.md --out=there -q --out again"
    assert page.elsewhere(command) == "probe bench --suite kernels --page docs/benchmarks.md"
