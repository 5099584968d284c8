"""What a page says beside its plot, without a browser."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

import plotly.graph_objects as go

from probe.figures import Plot
from probe.figures.pages import caption_of, page, save_figures
from probe.figures.style import BLUE, coloured

POINT = go.Figure(go.Scatter(x=[1], y=[1], text=["</script><b>"]))


def manifest(**changes: Any) -> Any:
    fields = {
        "analysis": "retrieval_heads", "name": "llama", "model": "SmolLM2-135M-Instruct", "weights_hash": "ab" * 32,
        "dtype": "float32", "device": "cpu", "prompts": ("00", "11"), "seed": 3, "created": "2026-01-02T03:04:05+00:00",
        "command": "__main__.py heads --lengths 300",
    }  # fmt: skip
    return SimpleNamespace(**(fields | changes))


def test_a_caption_names_model_run_and_command():
    assert caption_of(manifest()) == (
        "Retrieval heads of llama (SmolLM2-135M-Instruct), weights abababababab, float32 on cpu, 2 prompts, seed 3, "
        "2026-01-02.\nprobe heads --lengths 300"
    )
    assert caption_of(manifest(name="org/model", model="org/model")).startswith("Retrieval heads of org/model, weights")


def test_words_of_the_run_are_text_and_colours_are_markup():
    reading = f"{coloured('Blue', BLUE)} is <more> & more."
    text = page(Plot(POINT, headline="p < 1 & <i>", reading=reading), name="p", caption="a <b>\nprobe 'x' <y>")
    assert "<h1>p &lt; 1 &amp; &lt;i&gt;</h1>" in text and "<title>p &lt; 1 &amp; &lt;i&gt;</title>" in text
    assert f"<b style='color:var(--{BLUE[1:]})'>Blue</b> is &lt;more&gt; &amp; more." in text
    assert "<p>a &lt;b&gt;</p>" in text and "<code>probe 'x' &lt;y&gt;</code>" in text
    assert text.count("</script>") == 2  # the library and the page's own: none comes from the data
    content = re.search(r"const CONTENT = (.*);\n", text)
    assert content is not None and json.loads(content[1])["wide"]["figure"]["data"][0]["text"] == ["</script><b>"]


def test_pages_may_take_the_library_from_elsewhere(tmp_path):
    address = "https://cdn.example/plotly.min.js"
    (path,) = save_figures({"p": Plot(POINT, headline="A point")}, tmp_path, caption="c", library=address)
    assert f'src="{address}"' in path.read_text(encoding="utf-8") and list(tmp_path.iterdir()) == [path]
    assert save_figures({}, tmp_path / "none", caption="c") == [] and not (tmp_path / "none").exists()
