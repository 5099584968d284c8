"""Pages in a real browser, on a desk and on a phone, in light and dark: nothing is cut, covered or left in a corner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
import torch
from plotly.subplots import make_subplots

from probe.figures import Plot
from probe.figures.heads import map_figure, scatter_figure
from probe.figures.pages import save_figures
from probe.figures.style import BLUE, ORANGE, coloured
from probe.heads import Head

CAPTION = "Sinks of llama (SmolLM2-135M-Instruct), seed 0.\nprobe sinks --model llama --out " + "folder/" * 12
SIZES = {"desk": (1440, 900), "phone": (390, 844)}

MEASURED = """(() => {
  const box = node => { const at = node.getBoundingClientRect(); return [at.left, at.top, at.right, at.bottom]; };
  const all = selector => [...document.querySelectorAll(selector)].filter(node => node.textContent.trim()).map(box);
  const colour = (node, key) => getComputedStyle(node)[key].match(/[\\d.]+/g).slice(0, 3).map(Number);
  const svg = document.querySelector('#plot .main-svg');
  return {
    inner: [innerWidth, innerHeight], scroll: document.documentElement.scrollWidth,
    plot: box(svg), main: box(document.querySelector('main')), page: all('h1, header p, footer p'),
    toolbar: [...document.querySelectorAll('.modebar-btn')].map(box),
    texts: [...document.querySelectorAll('#plot .main-svg text')].map(node => [node.textContent.trim(), ...box(node)])
      .filter(([text, left, , right]) => text && right > left),
    legend: all('#plot .legend'), titles: all('#plot .annotation'),
    paper: colour(document.body, 'backgroundColor'), drawnPaper: colour(svg, 'backgroundColor'),
    ink: colour(document.querySelector('h1'), 'color'),
    tick: colour(document.querySelector('[class$=tick] text'), 'fill'),
    area: [plot._fullLayout._size.w, plot._fullLayout._size.h],
  };
})()"""


def panels() -> Plot:
    """Three panels side by side with long category labels, long titles and a legend."""
    figure = make_subplots(cols=3, shared_yaxes=True, subplot_titles=["loss in nats, where less is better", "b", "c"])
    names = ["as it is", "random heads,<br>onto the wrong answers", "a condition of thirty letters"]
    for column in (1, 2, 3):
        for colour, name in ((BLUE, "calibration (24)"), (ORANGE, "all other prompts (36)")):
            figure.add_scatter(
                x=[0, 0.5, 1.0], y=names, name=name, showlegend=column == 1, mode="markers", marker={"color": colour},
                row=1, col=column,
            )  # fmt: skip
    figure.update_xaxes(title="right answers beat the other choices, share of all prompts", col=1)
    reading = f"Dots are {coloured('calibrated', BLUE)} <heads> & others."
    return Plot(figure, headline="A & B < C: " + "a headline of one sentence " * 4, reading=reading, lines=9)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(30, 9, generator=generator)
    line = go.Figure(go.Scatter(x=[1, 2, 3], y=[1e-9, 2.5, 1e4], name="a"))
    line.update_yaxes(type="log", title="a long name of what is measured here, in nats per token")
    plots = {
        "map": map_figure({"sink": score}, headline="Heads attend to the first token", reading="Cells are heads."),
        "maps": map_figure({"sink": score, "copying": 2 * score - 1, "induction": score}, headline="Three maps"),
        "scatter": scatter_figure(
            score, score.flip(0), x_name="x", y_name="y", headline="Two scores", marked=[Head(0, 1), Head(3, 4)]
        ),
        "panels": panels(),
        "line": Plot(line, headline="A line rises"),
    }
    paths = save_figures(plots, tmp_path_factory.mktemp("pages"), caption=CAPTION)
    return {path.stem: path for path in paths}


def meets(a: list[float], b: list[float]) -> bool:
    return min(a[2], b[2]) - max(a[0], b[0]) > 1 and min(a[3], b[3]) - max(a[1], b[1]) > 1


def contrast(a: list[float], b: list[float]) -> float:
    """Ratio of the relative luminances (WCAG 2), from 1 to 21."""

    def luminance(colour: list[float]) -> float:
        linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("name", ["maps", "scatter", "panels", "line"])
def test_a_page_fills_the_window_and_cuts_and_covers_nothing(browser: Any, pages, name: str):
    """On a desk and on a phone, light and dark; the page is opened once and follows the device and the scheme."""
    for place, (width, height) in enumerate(SIZES.values()):
        for dark in (False, True):
            if place or dark:
                browser.emulate(width, height, dark=dark)
                browser.wait_until_drawn(width, height, dark=dark)
            else:
                browser.open(pages[name], width, height)
            seen = browser.evaluate(MEASURED)
            assert seen["inner"] == [width, height] and seen["scroll"] <= width
            check_place(seen, width, height)
            check_text(seen)
            for paper in (seen["paper"], seen["drawnPaper"]):
                assert contrast(paper, seen["ink"]) > 10 and contrast(paper, seen["tick"]) > 4.5
                assert (max(paper) < 60) == dark


def check_place(seen: dict[str, Any], width: int, height: int) -> None:
    """The plot is as wide as its text, in the middle, and fills the window's width, or its height if it is square."""
    (left, _, right, bottom), main = seen["plot"], seen["main"]
    assert right - left >= main[2] - main[0] - 1
    assert abs(main[0] - (width - main[2])) <= 1
    assert main[2] - main[0] > width - 70 or bottom > 0.85 * height


def check_text(seen: dict[str, Any]) -> None:
    """No text is cut by the plot's border, and neither the toolbar nor the legend covers any."""
    plot = seen["plot"]
    for label, *box in seen["texts"]:
        assert box[0] >= plot[0] - 1 and box[2] <= plot[2] + 1, f"{label!r} is cut at the side: {box} of {plot}"
        assert box[1] >= plot[1] - 1 and box[3] <= plot[3] + 1, f"{label!r} is cut above or below: {box} of {plot}"
    others = [*seen["page"], *(box for _, *box in seen["texts"])]
    assert len(seen["toolbar"]) == 6
    assert not any(meets(button, other) for button in seen["toolbar"] for other in others)
    assert all(plot[0] <= button[0] and button[2] <= plot[2] + 1 for button in seen["toolbar"])
    assert not any(meets(legend, title) for legend in seen["legend"] for title in seen["titles"])


def test_panels_stand_in_one_column_on_a_phone_each_with_its_own_labels(browser: Any, pages):
    browser.open(pages["panels"], 1440, 900)
    labels = "document.querySelectorAll('#plot [class*=y][class$=tick] text').length"
    assert browser.evaluate(labels) == 3
    browser.emulate(390, 844)
    browser.wait_until_drawn(390, 844)
    assert browser.evaluate(labels) == 9
    browser.emulate(1440, 900)
    browser.wait_until_drawn(1440, 900)
    assert browser.evaluate(labels) == 3


def test_a_map_keeps_its_proportions_on_a_desk(browser: Any, pages):
    browser.open(pages["map"], 1440, 900)
    across, down = browser.evaluate(MEASURED)["area"]
    assert across / down == pytest.approx(30 / 9, rel=0.02) and across > 1200
    browser.emulate(1000, 900)
    browser.wait_until_drawn(1000, 900)
    across, down = browser.evaluate(MEASURED)["area"]
    assert across / down == pytest.approx(30 / 9, rel=0.02) and across < 1000


def test_words_are_shown_as_they_are_and_colours_of_the_reading_follow(browser: Any, pages):
    browser.open(pages["panels"], 1440, 900)
    assert browser.evaluate("document.querySelector('h1').textContent").startswith("A & B < C: a headline")
    assert browser.evaluate("document.querySelector('header p').textContent") == "Dots are calibrated <heads> & others."
    word = "getComputedStyle(document.querySelector('header b')).color"
    assert browser.evaluate(word) == "rgb(0, 114, 178)"
    browser.emulate(1440, 900, dark=True)
    assert browser.evaluate(word) != "rgb(0, 114, 178)"
    assert browser.evaluate("document.querySelector('footer code').textContent").startswith("probe sinks --model")


def test_a_notebook_cuts_no_word_of_the_headline_and_covers_no_panel(browser: Any, pages):
    path = pages["panels"].parent / "notebook.html"
    panels().notebook().write_html(path, include_plotlyjs="directory")
    browser.emulate(1440, 900)
    browser.send("Page.navigate", url=path.as_uri())
    browser.wait_until("document.querySelector('.gtitle') && document.querySelectorAll('.annotation').length == 3")
    boxes = "(node => { const b = node.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; })"
    title, plot = (browser.evaluate(f"{boxes}(document.querySelector('{part}'))") for part in (".gtitle", ".main-svg"))
    assert plot[0] <= title[0] and title[2] <= plot[2] and plot[1] < title[1]
    for part in (".annotation", ".legend", ".ytick text"):
        for box in browser.evaluate(f"[...document.querySelectorAll('{part}')].map({boxes})"):
            assert not meets(title, box) and plot[0] <= box[0] and box[3] <= plot[3]
