"""The sinks of the packaged model: known layers, dimension and intervention, on two texts cut short."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from probe.analyses import sinks
from probe.analyses.sinks import passes as sink_runs
from probe.analyses.sinks.passes import CONTROL, MEAN, NONE, ONLY, RANDOM, ZERO
from probe.analyses.sinks.result import Sinks
from probe.analyses.sinks.settings import Settings
from probe.analyses.sinks.statistics import row_counts
from probe.analyses.sinks.texts import TEXTS
from probe.models import Model

pytestmark = pytest.mark.slow
SHORT = Settings(prose=TEXTS[:2], max_tokens=150, randoms=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sinks") / "run"


@pytest.fixture(scope="module")
def found(llama: Model, folder) -> Sinks:
    return sinks.run(llama, SHORT, out=folder)


def test_every_row_of_every_head_sums_to_one(found: Sinks):
    for means in found.column_means:
        keys = means.shape[-1]
        totals = (means.double() * row_counts(keys)).sum(-1)
        torch.testing.assert_close(totals, torch.full_like(totals, keys), rtol=1e-5, atol=0)


def test_first_mass_is_what_the_column_means_say(found: Sinks):
    for text, means in enumerate(found.column_means):
        keys = means.shape[-1]
        mass = (keys * means[..., 0] - 1) / (keys - 1)
        torch.testing.assert_close(found.first_mass[text], mass, rtol=1e-4, atol=1e-5)


def test_column_means_equal_the_eager_maps(llama: Model, found: Sinks):
    ids = llama.tokens("".join(found.strings[0])).ids[None]
    assert ids.shape[1] == 150
    former = str(llama.hf.config._attn_implementation)
    llama.hf.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            maps = llama.hf(input_ids=ids, output_attentions=True, use_cache=False).attentions
    finally:
        llama.hf.set_attn_implementation(former)
    means = torch.cat(maps).sum(-2) / row_counts(150)
    torch.testing.assert_close(found.column_means[0], means, rtol=1e-3, atol=1e-5)


def test_the_known_layers(found: Sinks):
    layers = torch.tensor(found.by_layer()["first_mass"].tolist())
    assert 0.29 <= found.first_mass.mean() <= 0.37
    assert layers[:3].max() <= 0.1  # of texts half as long as those with .07
    assert 0.09 <= layers[3:10].min() and layers[3:10].max() <= 0.22
    assert layers[10:12].max() <= 0.04  # the first regime ends, the second has not begun
    assert 0.25 <= layers[12:29].min()
    assert (0.45 < found.sink_rate()).all() and (found.sink_rate() < 0.55).all()
    assert 0.25 <= found.value_ratio[..., 2:29, :].mean() <= 0.4


def test_one_dimension_written_by_two_mlps_and_erased_by_the_last(found: Sinks):
    assert found.dims[0] == 507
    written = found.writes().set_index(["dim", "layer", "block"])["change"]
    assert 300 < written[507, 2, "mlp"] < 900 and written[507, 9, "mlp"] < -200
    assert 17_900 < written[507, 11, "mlp"] < 24_900
    assert written[507, 28, "mlp"] < -5_000 and written[507, 29, "mlp"] < -1_000
    table = found.writes()
    assert set(table.loc[table["dim"] == 507, "block"]) == {"mlp"}
    in_507 = found.massive[found.massive["dim"] == 507]
    assert set(in_507["position"]) == {0} and set(in_507["layer"]) <= set(range(11, 29))
    assert (in_507["ratio"] > 1000).all() and in_507["ratio"].max() > 11_000


def test_zero_is_ruin_and_the_mean_is_nothing(found: Sinks):
    base = found.condition(NONE)
    assert found.condition(ZERO) > base + 5
    for name in (MEAN, CONTROL, RANDOM):
        assert found.condition(name) == pytest.approx(base, abs=0.05), name
    assert found.condition(ONLY) < base + 0.3  # that dimension alone carries what the first token is for
    assert set(found.causes["layer"]) == {11}
    assert found.causes.loc[found.causes["condition"] == CONTROL, "dim"].tolist() == [508, 508]
    means = found.causes.loc[found.causes["condition"] == MEAN, "value"].tolist()
    values = found.first[:, found.places.index((11, "mlp")), 0].tolist()
    assert means == pytest.approx(values[::-1], rel=1e-5)  # of two texts, the mean over the others is the other's


def test_without_the_dimension_the_first_token_keeps_most_of_its_attention(found: Sinks):
    before, after = found.condition(NONE, "attention"), found.condition(ZERO, "attention")
    assert 0.42 < before < 0.58 and 0.3 < after < before - 0.03


def test_phi_singles_out_the_first_token(found: Sinks):
    for values in found.phi:
        entering = values[11:27]  # layers 12 to 27
        assert (entering[:, 0] > 20).all() and (entering[:, 0] <= 576**0.5 + 1e-3).all()
        assert (entering[:, 1:].amax(-1) < entering[:, 0]).all()


def test_the_sink_tokens(found: Sinks):
    table = found.tokens()
    assert table["initial"].tolist()[:2] == [True, True] and table["initial"].sum() == 2
    assert (table["share"][:2] > 0.6).all() and (table["layers"][:2] >= 20).all()
    assert table["token"][2] == " the"
    assert (table["position"] <= 150 - 16).all()  # fewer than 16 rows: not asked


def test_short_columns_are_noise(found: Sinks):
    rules = found.rules().set_index(["rule", "min_rows"])
    for rule in ("absolute", "alpha_over_n", "alpha_times_uniform"):
        assert rules.loc[(rule, 1), "most"] > 1.3 * rules.loc[(rule, 16), "most"]
    assert rules.loc[("alpha_times_uniform", 16), "most"] < rules.loc[("alpha_over_n", 16), "most"]


def test_heads_come_strongest_first_with_intervals(found: Sinks):
    table = found.to_df()
    assert len(table) == 270 and (table["first_mass"].diff().dropna() <= 0).all()
    assert (table["first_mass_low"] <= table["first_mass"]).all()
    assert float(table["first_mass"].mean()) == pytest.approx(float(found.first_mass.mean()), rel=1e-5)


def test_saved_and_shown_again(llama: Model, found: Sinks, folder, monkeypatch):
    monkeypatch.setattr(sink_runs, "measure", None)
    assert sinks.run(llama, SHORT, out=folder) == found
    assert {path.stem for path in (folder / "figures").glob("*.html")} == {"sinks", "profile", "tokens", "causes"}
    assert json.loads(json.dumps(found.to_dict()))["dims"] == list(found.dims)


def test_a_window_lowers_what_even_attention_gives(found: Sinks):
    """Attention that is even over what it sees has no sinks, in windowed layers too."""
    i, j = torch.arange(200)[:, None], torch.arange(200)
    means = []
    for window in (4, 200):
        seen = (j <= i) & (i - j < window)
        means.append((seen / seen.sum(-1, keepdim=True)).sum(0) / row_counts(200))
    even = replace(found, column_means=[torch.stack(means)[:, None]], windows=(4, None))
    assert not even.found(0, rule="alpha_times_uniform", min_rows=1).any()
    blind = replace(even, windows=(None, None))
    assert blind.found(0, rule="alpha_times_uniform", min_rows=1)[0, 0, 180:].any()  # late columns are short ones
