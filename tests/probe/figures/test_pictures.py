"""Files for print: inches, points, and text that stays text."""

from __future__ import annotations

import re
import shutil
import struct

import pytest
from plotly.subplots import make_subplots

from probe.errors import ProbeError, UsageError
from probe.figures import Plot
from probe.figures.pictures import printed

browser = pytest.mark.skipif(
    not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    reason="no Chromium is installed (Debian: apt-get install chromium)",
)


def plot() -> Plot:
    figure = make_subplots(cols=2, subplot_titles=["first panel", "second panel"])
    for column in (1, 2):
        figure.add_scatter(
            x=[1, 2, 3], y=[3, 1, 2], mode="markers+text", text=["L1H2", "L3H4", "L5H6"], textfont={"size": 8},
            name=f"series {column}", row=1, col=column,
        )  # fmt: skip
    figure.update_xaxes(title="layer")
    return Plot(figure, headline="The headline is not drawn")


@pytest.mark.slow
@browser
def test_a_column_is_3_4_inches_wide_with_text_of_7_points_or_more(tmp_path):
    svg = plot().save(tmp_path / "deep" / "column.svg").read_text(encoding="utf-8")
    width = re.search(r'<svg[^>]* width="(\d+)"', svg)
    assert width is not None and int(width[1]) == round(3.4 * 96)
    sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", svg)]
    seen = [size for size in sizes if size > 2]  # the blank titles that keep labels off the border have one pixel
    assert min(seen) >= 7 * 96 / 72 - 0.01 and max(seen) < 12
    assert "second panel" in svg and "L5H6" in svg and "headline" not in svg


@browser
@pytest.mark.slow
def test_a_png_has_300_dots_an_inch(tmp_path):
    content = plot().save(tmp_path / "page.png", width="page").read_bytes()
    assert struct.unpack(">I", content[16:20]) == (2100,)
    place = content.index(b"pHYs")
    across, down, unit = struct.unpack(">IIB", content[place + 4 : place + 13])
    assert across == down == round(300 / 0.0254) and unit == 1


@pytest.mark.slow
@browser
def test_a_pdf_has_its_size_in_points_and_its_text_as_text(tmp_path):
    content = plot().save(tmp_path / "column.pdf").read_bytes()
    box = re.search(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", content)
    assert box is not None and float(box[1]) == pytest.approx(3.4 * 72, abs=1)
    assert b"/Font" in content and len(re.findall(rb"/Type\s*/Page\b", content)) == 1


def test_a_page_keeps_panels_side_by_side_and_a_column_stacks_them():
    page, column = (printed(plot(), width).to_dict()["layout"] for width in ("page", "column"))
    assert (page["width"], column["width"]) == (672, 326)
    assert page["xaxis2"]["domain"][0] > 0.5 and column["xaxis2"]["domain"] == [0, 1]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [("a.jpg", {}, "ends in .png, .svg or .pdf, got"), ("a.png", {"width": "wide"}, 'expected width="column"')],
)
def test_what_cannot_be_printed_is_refused(tmp_path, name, options, words):
    with pytest.raises(UsageError, match=words):
        plot().save(tmp_path / name, **options)


def test_without_a_browser_the_error_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "no-browser"))
    with pytest.raises(ProbeError, match=r"needs kaleido .* and a Chrome or Chromium") as caught:
        plot().save(tmp_path / "a.png")
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []
