"""What interventions are in themselves: numbers at the edge, gradients, what is refused, what a manifest says."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import DynamicCache

from probe import Head, UsageError
from probe.engine.attention import engaged
from probe.errors import ProbeError
from probe.interventions import (
    Blend,
    CalibrateSinks,
    ForceAttention,
    HeadOutputs,
    PatchHeads,
    Pattern,
    PruneHeads,
    Redistribute,
    ScaleHeads,
)
from probe.interventions.call import AttentionCall
from probe.interventions.redistribution import log_factors, redistribute
from probe.kernels.contract import Mask, Request
from tests.probe.architectures import VOCAB, build


@pytest.fixture(scope="module")
def hf():
    return build("llama")


def ids(length: int = 20, seed: int = 0):
    return torch.randint(3, VOCAB - 1, (1, length), generator=torch.Generator().manual_seed(seed))


def call_with(query, key, value, **options) -> AttentionCall:
    options = {"mask": Mask(), "scale": 1.0} | options
    return AttentionCall(layer=0, module=torch.nn.Identity(), query=query, key=key, value=value, **options)


# --- redistribution --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.0, 6.0, 14.0, 30.0])
@pytest.mark.parametrize("heads", [[0, 1, 2, 3], [1, 2]])
def test_rows_whose_sources_hold_nearly_everything_keep_their_digits(strength, heads):
    """m_S up to 1 - 1e-12: taking the recipients' mass as 1 - m_S would leave none of it in float32."""
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 60, 8), torch.randn(2, 2, 60, 8), torch.randn(2, 2, 60, 8)
    query[..., 0], key[..., 0] = strength**0.5, 0.0
    key[:, :, [0, 5], 0] = strength**0.5
    sources = torch.zeros(1, 1, 60, dtype=torch.bool)
    sources[..., [0, 5]] = True
    pattern = Pattern(call_with(query, key, value))
    redistribute(pattern, heads, sources, ~sources, kept=0.4)
    output, found = pattern.attend(heads, Request(lse=True, sets=torch.stack([sources, ~sources], 2)))
    k, v = (t.double().repeat_interleave(2, 1)[:, heads] for t in (key, value))
    s = (query.double()[:, heads] @ k.mT).masked_fill(torch.ones(60, 60).triu(1).bool(), -torch.inf)
    p = s.softmax(-1)
    of_sources, of_others = (p * sources).sum(-1, keepdim=True), (p * ~sources).sum(-1, keepdim=True)
    if strength == 14:
        assert of_sources[:, :, 10:].max() > 0.9999
    moved = torch.where(sources, 0.4 * p, p * (1 + 0.6 * of_sources / of_others))
    moved = torch.where(of_others > 0, moved, p)
    torch.testing.assert_close(output.double(), moved @ v, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.mass.sum(-1), torch.ones(2, len(heads), 60), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.lse.double(), s.logsumexp(-1), rtol=1e-5, atol=1e-5)


def test_a_row_without_mass_on_either_side_is_left_alone():
    mass = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0], [float("nan")] * 2])
    factors = log_factors(mass, kept=0.4).exp()
    torch.testing.assert_close(factors, torch.tensor([[0.4, 1.6], [1, 1], [1, 1], [1, 1]], dtype=torch.float64))


@pytest.mark.parametrize(
    "nothing",
    [
        CalibrateSinks([(0, 1), (1, 0)], beta=1.0),
        CalibrateSinks([(0, 1), (1, 0)], rule="absolute", threshold=1.0),
        Redistribute([(0, 1)], sources=[3], kept=1.0),
        PruneHeads([]),
        ForceAttention([(1, 2)], queries=[50], keys=[3]),  # a query that never comes
    ],
)
def test_what_changes_nothing_leaves_the_logits_bit_for_bit(hf, nothing):
    with torch.no_grad():
        with engaged(hf):
            expected = hf(input_ids=ids()).logits
        with engaged(hf, interventions=(nothing,)):
            assert torch.equal(hf(input_ids=ids()).logits, expected)


# --- calibration -----------------------------------------------------------------------------------------------------


def planted(columns: list[int], length: int = 64) -> AttentionCall:
    """One head whose queries put a third of their weight on each planted key, the rest spread evenly."""
    query = torch.ones(1, 1, length, 1)
    key = torch.zeros(1, 1, length, 1)
    key[0, 0, columns] = torch.tensor(float(length)).log()
    return call_with(query, key, torch.randn(1, 1, length, 4, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("rule, threshold", [("alpha_over_n", 5.0), ("absolute", 0.1), ("alpha_times_uniform", 5.0)])
def test_planted_sinks_are_found_and_none_where_none_is(rule, threshold):
    settings = CalibrateSinks([(0, 0)], rule=rule, threshold=threshold, min_rows=16)
    for columns, expected in (([0, 20], [20]), ([0, 20, 40], [20, 40]), ([0], []), ([], [])):
        call = planted(columns)
        assert settings.find(call, Pattern(call), [0])[0, 0].nonzero()[:, 0].tolist() == expected


def test_the_release_spares_the_first_key_that_is_flagged():
    call = planted([20, 40])
    assert CalibrateSinks.release([(0, 0)]).find(call, Pattern(call), [0])[0, 0].nonzero()[:, 0].tolist()[:1] == [40]
    later = CalibrateSinks([(0, 0)], rule="absolute", threshold=0.1, min_rows=16, spare="first flagged")
    assert later.find(call, Pattern(call), [0])[0, 0].nonzero()[:, 0].tolist() == [40]
    both = CalibrateSinks([(0, 0)], rule="absolute", threshold=0.1, min_rows=16)
    assert both.find(call, Pattern(call), [0])[0, 0].nonzero()[:, 0].tolist() == [20, 40]


def test_sinks_of_a_prefix_do_not_depend_on_what_follows(hf):
    heads = [(layer, head) for layer in range(2) for head in range(4)]
    long, other = ids(40), torch.cat([ids(40)[:, :30], ids(10, seed=9)], 1)
    with torch.no_grad():
        for prefix, same in ((20, True), (None, False)):
            with engaged(hf, interventions=(CalibrateSinks(heads, threshold=1.5, prefix=prefix),)):
                first, second = hf(input_ids=long).logits[:, :30], hf(input_ids=other).logits[:, :30]
            assert torch.allclose(first, second, atol=1e-5) is same


def test_sinks_are_frozen_while_decoding_and_found_again_in_the_next_prompt(hf):
    heads = [(layer, head) for layer in range(2) for head in range(4)]
    calibrate = CalibrateSinks(heads, threshold=1.5)
    with torch.no_grad(), engaged(hf, interventions=(calibrate,)):
        first = hf(input_ids=ids(30)).logits
        hf(input_ids=ids(25, seed=3))
        assert torch.equal(hf(input_ids=ids(30)).logits, first)


# --- gradients -------------------------------------------------------------------------------------------------------


def loss(hf, prompt):
    return hf(input_ids=prompt, labels=prompt, use_cache=False).loss


def test_gates_get_gradients(hf):
    heads = [(0, 1), (1, 0), (1, 3)]
    gates = torch.tensor([1.0, 0.5, 2.0], requires_grad=True)
    with engaged(hf, interventions=(ScaleHeads(heads, gates),)):
        loss(hf, ids()).backward()
    for n in range(3):
        step = torch.zeros(3)
        step[n] = 1e-2
        sides = []
        for sign in (1, -1):
            with torch.no_grad(), engaged(hf, interventions=(ScaleHeads(heads, gates.detach() + sign * step),)):
                sides.append(loss(hf, ids()))
        assert gates.grad[n].item() == pytest.approx(float(sides[0] - sides[1]) / 2e-2, rel=2e-2, abs=1e-3)


def test_one_backward_pass_gives_the_gradient_of_editing_each_head(hf):
    heads = [(layer, head) for layer in range(2) for head in range(4)]
    gates = torch.zeros(2, 4, requires_grad=True)
    calibrate = CalibrateSinks(heads, threshold=1.5)
    with engaged(hf, interventions=(Blend(calibrate, gates),)):
        loss(hf, ids(40)).backward()
    assert (gates.grad.abs() > 1e-4).sum() > 4
    for layer, head in heads:
        sides = []
        for gate in (2e-2, -2e-2):
            blend = torch.zeros(2, 4)
            blend[layer, head] = gate
            with torch.no_grad(), engaged(hf, interventions=(Blend(calibrate, blend),)):
                sides.append(loss(hf, ids(40)))
        expected = float(sides[0] - sides[1]) / 4e-2
        assert gates.grad[layer, head].item() == pytest.approx(expected, rel=3e-2, abs=2e-3)


def test_a_blend_that_goes_all_the_way_is_the_intervention(hf):
    calibrate = CalibrateSinks([(0, 1), (1, 2)], threshold=1.5)
    found = []
    with torch.no_grad():
        for intervention in (calibrate, Blend(calibrate, torch.ones(2, 4)), Blend(calibrate, torch.zeros(2, 4))):
            with engaged(hf, interventions=(intervention,)):
                found.append(hf(input_ids=ids(40)).logits)
        found.append(hf(input_ids=ids(40)).logits)
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[2], found[3], rtol=1e-4, atol=1e-4)
    assert (found[0] - found[3]).abs().max() > 1e-2


# --- other runs ------------------------------------------------------------------------------------------------------


def test_outputs_of_another_run_take_its_place(llama):
    clean, corrupt = "The capital of France is", "The capital of Poland is"
    heads = llama.heads()
    other = llama.head_outputs(llama.tokens(corrupt))
    with llama.intervene(PatchHeads(heads, other)):
        everything, _ = llama.run_with_stats(clean, stats=["lse"])
    last = llama.head_outputs(corrupt, layers=[29])
    assert list(last.z) == [29] and torch.equal(last.z[29], other.z[29])
    with llama.intervene(PatchHeads([(29, 4)], last, positions=[0])):
        first_only, _ = llama.run_with_stats(clean, stats=["lse"])
    plain, _ = llama.run_with_stats(clean, stats=["lse"])
    corrupted, _ = llama.run_with_stats(corrupt, stats=["lse"])
    # all heads from the other run, but this run's own embeddings and what the MLPs make of them
    assert (everything - corrupted).abs().max() < (plain - corrupted).abs().max()
    assert torch.equal(first_only[:, 1:], plain[:, 1:])  # z of the first token in the last layer reaches no other


def test_mean_pruning_of_what_is_constant_changes_nothing(hf):
    prompt = torch.full((1, 12), 7)  # one token throughout: without positions in the values, z is the same everywhere
    outputs = HeadOutputs({0: torch.ones(1, 4, 12, 12)})
    with torch.no_grad(), engaged(hf, interventions=(PatchHeads([(0, 2)], outputs),)):
        constant = hf(input_ids=prompt).logits
        with engaged(hf, interventions=(PruneHeads([(0, 2)], fill="mean", reference=outputs),)):
            assert torch.equal(hf(input_ids=prompt).logits, constant)


Z = HeadOutputs({0: torch.zeros(1, 4, 20, 12), 1: torch.zeros(1, 4, 20, 12)})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Redistribute([(0, 0)], sources=[20]), r"sources must lie in the prompt's positions 0\.\.19, got 20"),
        (lambda: Redistribute([(0, 0)], sources=[1], recipients=[25]), "recipients must lie in the prompt's positions"),
        (lambda: Redistribute([(0, 0)], sources=[1], recipients=[1, 2]), r"must not share a position, got \[1\]"),
        (lambda: Redistribute([(0, 0)], sources=[]), "sources must be positions"),
        (lambda: Redistribute([(0, 0)], sources=[1], kept=1.5), "kept must be a share from 0 to 1, got 1.5"),
        (lambda: CalibrateSinks([(0, 0)], beta=-1), "beta must be a share"),
        (lambda: CalibrateSinks([(0, 0)], rule="largest"), "rule must be one of absolute"),
        (lambda: CalibrateSinks([(0, 0)], spare="none"), "spare must be"),
        (lambda: CalibrateSinks([(0, 0)], prefix=0), "prefix must be at least 1"),
        (lambda: CalibrateSinks([(0, 0)], prefix=21), "prefix is 21 positions and the prompt has 20"),
        (lambda: CalibrateSinks([(0, 0)], min_rows=21), "the prompt has 20 tokens, too few to detect sinks"),
        (lambda: ForceAttention([(0, 0)], queries=[5], keys=[6]), "query 5 cannot be forced to attend to key 6"),
        (lambda: ForceAttention([(0, 0)], queries=[5], keys=[30]), "query 5 cannot be forced to attend to key 30"),
        (lambda: ForceAttention([(0, 0)], queries=[5], keys=[1, 1]), "keys must differ"),
        (lambda: ForceAttention([(0, 0)], queries=[5], keys=[1], weights=[0.5]), "sum to one"),
        (lambda: ForceAttention([(0, 0)], queries=[5], keys=[]), "keys must be a list"),
        (lambda: ForceAttention([(0, 0)], queries=[5], keys=[-1]), "keys must be positions"),
        (lambda: ForceAttention([(0, 0)], queries=[[5], [6]], keys=[1]), "given for 2 texts and the batch has 1"),
        (lambda: ForceAttention([(0, 0)], queries=[[5], [6]], keys=[[1]] * 3), "one list for each text"),
        (
            lambda: ForceAttention([(0, 0)], queries=[[5], [6, 7]], keys=[1]),
            "the same number of queries in each text",
        ),
        (lambda: ScaleHeads([(0, 0)], torch.ones(2)), "gates must be one for each of 1 heads"),
        (lambda: PatchHeads([(2, 0)], Z), r"layer 2 were not recorded, only those of layers \[0, 1\]"),
        (lambda: PatchHeads([(0, 0)], Z, positions=[20]), r"positions must lie in the source's 0\.\.19"),
        (lambda: PatchHeads([(0, 0)], HeadOutputs({0: torch.zeros(1, 4, 9, 12)})), "the source has 9 tokens"),
        (
            lambda: PatchHeads([(0, 0)], HeadOutputs({0: torch.zeros(3, 4, 20, 12)})),
            "the source from the same model",
        ),
        (lambda: Blend(CalibrateSinks([(1, 3)]), torch.zeros(2, 3)), r"gates must be \[layers, heads\] of the model"),
        (lambda: Blend(CalibrateSinks([(1, 3)]), torch.zeros(4)), "gates must be"),
        (lambda: PruneHeads([(0, 0)], fill="mean"), "needs reference"),
        (lambda: PruneHeads([(0, 0)], reference=Z), "needs reference"),
    ],
)
def test_what_cannot_apply_says_so_in_one_line(hf, make, said):
    with pytest.raises(UsageError, match=said) as caught, torch.no_grad(), engaged(hf, interventions=(make(),)):
        hf(input_ids=ids())
    assert "\n" not in str(caught.value)
    assert hf.config._attn_implementation == "sdpa"


def test_a_prompt_must_be_seen_before_its_continuation(hf):
    cache = DynamicCache()
    with torch.no_grad():
        hf(input_ids=ids(), past_key_values=cache)
        with pytest.raises(UsageError, match="run the prompt inside the same context"):  # noqa: SIM117
            with engaged(hf, interventions=(CalibrateSinks([(0, 1)]),)):
                hf(input_ids=ids(1), past_key_values=cache)


def test_forced_queries_and_keys_of_each_text(hf):
    prompt = torch.cat([ids(20), ids(20, seed=1)])
    force = ForceAttention([(0, 1), (1, 2)], queries=[[19], [15]], keys=[[3, 4], [7, 9]], weights=[0.25, 0.75])
    with torch.no_grad():
        with engaged(hf, interventions=(force,)):
            together = hf(input_ids=prompt).logits
        for text, (query, keys) in enumerate([(19, [3, 4]), (15, [7, 9])]):
            alone = ForceAttention([(0, 1), (1, 2)], queries=[query], keys=keys, weights=[0.25, 0.75])
            with engaged(hf, interventions=(alone,)):
                found = hf(input_ids=prompt[text : text + 1]).logits[0]
            torch.testing.assert_close(together[text], found, rtol=1e-4, atol=1e-4)


def test_a_capture_of_an_edited_pattern_is_refused(llama):
    with llama.intervene(ScaleHeads([(3, 3)], 0.5)):
        llama.capture("Once upon a time there was a king")
    with pytest.raises(ProbeError, match="capture without interventions on the pattern"):  # noqa: SIM117
        with llama.intervene(Redistribute([(3, 3)], sources=[0])):
            llama.capture("Once upon a time there was a king")


def test_descriptions_are_json_and_tell_what_was_done():
    made = [
        CalibrateSinks.release([(3, 4)]),
        Redistribute([(0, 0)], sources=[1, 2]),
        ForceAttention([(0, 0)], queries=[5], keys=[1]),
        ScaleHeads([(0, 0)], torch.tensor([0.5])),
        PatchHeads([(0, 1)], Z, positions=[3]),
        PruneHeads([(1, 2)], fill="mean", reference=Z),
        Blend(CalibrateSinks([(0, 0)]), torch.zeros(30, 9)),
    ]
    told = [json.loads(json.dumps(each.describe())) for each in made]
    assert told[0] == {
        "intervention": "CalibrateSinks", "heads": ["L3H4"], "beta": 0.4, "rule": "absolute", "threshold": 0.1,
        "min_rows": 1, "spare": "first flagged", "prefix": None,
    }  # fmt: skip
    assert told[3]["gates"] == [0.5] and told[4]["source"]["shape"] == [1, 4, 20, 12]
    assert told[6]["intervention"] == "Blend" and told[6]["gates"]["shape"] == [30, 9]
    assert told[6]["edit"]["intervention"] == "CalibrateSinks" and len(told[6]["gates"]["sha256"]) == 64


def test_a_manifest_records_what_is_in_force(llama):
    from probe.saving.manifest import manifest_of

    with llama.intervene(PruneHeads([(18, 6)])), llama.intervene(ScaleHeads([(2, 1)], 0.5)):
        assert [type(each).__name__ for each in llama.interventions] == ["PruneHeads", "ScaleHeads"]
        told = manifest_of(llama, analysis="test", options={}).interventions
    assert [each["heads"] for each in told] == [[str(Head(18, 6))], [str(Head(2, 1))]]
    assert llama.interventions == ()


def test_a_head_that_is_named_twice_counts_once(hf):
    found = []
    for heads in ([(0, 1), (1, 0)], [(0, 1), (1, 0), (0, 1)]):
        with torch.no_grad(), engaged(hf, interventions=(Redistribute(heads, sources=[0], kept=0.5),)):
            found.append(hf(input_ids=ids()).logits)
    assert torch.equal(*found)
    with pytest.raises(UsageError, match="one for each of 1 heads"):
        ScaleHeads([(0, 1), (0, 1)], torch.ones(2))


def test_the_shortest_text_of_a_batch_must_be_long_enough(hf):
    mask = (torch.arange(20) >= torch.tensor([[0], [15]])).long()
    batch, calibrate = ids(20).repeat(2, 1), CalibrateSinks([(0, 1)], min_rows=6)
    with torch.no_grad(), engaged(hf, interventions=(calibrate,)):
        hf(input_ids=batch)
        with pytest.raises(UsageError, match="the prompt has 5 tokens, too few to detect sinks with min_rows=6"):
            hf(input_ids=batch, attention_mask=mask)
