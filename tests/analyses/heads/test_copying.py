"""The copying score: planted circuits, the full vocab x vocab map written out, and what copying heads do to logits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from probe.analyses.heads import copying
from probe.analyses.heads.copying import copying_score, embedding_product, layer_cores, vocabulary_tables
from probe.analyses.heads.norm_gains import Gain, Norms, find_norms
from probe.engine.projections import Projections, visit_projections
from probe.frame.analysis import Measured
from probe.models import Model
from tests.analyses.heads.test_norm_gains import circuit, model_of, projections

NO_NORMS = Norms((None,), (None,), None)


def test_positive_eigenvalues_score_one_negative_minus_one():
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])  # eigenvalues i and -i: neither
    core = torch.stack([torch.eye(2), -3 * torch.eye(2), turn, torch.diag(torch.tensor([3.0, -1.0]))])
    assert copying_score(core).tolist() == pytest.approx([1, -1, 0, 0.5], abs=1e-6)


def test_a_head_that_writes_nothing_has_no_score():
    assert math.isnan(copying_score(torch.zeros(1, 3, 3)).item())


def test_the_score_is_the_cosine_of_a_rotation():
    angle = 1.2
    core = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    assert copying_score(core).item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_planted_heads_copy_and_suppress():
    """Two KV heads read half the residual stream each; of their two query heads one writes it back, one negates it."""
    torch.manual_seed(0)
    embedding = torch.randn(50, 8)
    read = torch.eye(8).view(8, 2, 4).transpose(0, 1)
    back = read.transpose(1, 2)
    output = torch.stack([back[0], -back[0], -back[1], back[1]])
    maps = Projections(0, read, output, torch.zeros(8), None, 0.0, 0.0, 0.0)
    cores = layer_cores(maps, embedding_product(embedding, embedding), NO_NORMS)
    assert copying_score(cores).tolist() == pytest.approx([1, -1, -1, 1], abs=1e-5)


def test_a_constant_added_to_all_logits_changes_nothing():
    torch.manual_seed(0)
    embedding, unembedding = torch.randn(50, 8), torch.randn(50, 8)
    plain = embedding_product(embedding, unembedding)
    torch.testing.assert_close(
        embedding_product(embedding, unembedding + 5 * torch.randn(8)), plain, atol=1e-3, rtol=1e-4
    )
    torch.testing.assert_close(plain, (unembedding - unembedding.mean(0)).T @ embedding, atol=1e-4, rtol=1e-5)


def test_the_product_is_the_same_in_slices(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    embedding, unembedding = torch.randn(50, 8), torch.randn(50, 8)
    whole = embedding_product(embedding, unembedding)
    monkeypatch.setattr(copying, "VOCAB_CHUNK", 7)
    torch.testing.assert_close(embedding_product(embedding, unembedding), whole)


def written_out(name: str, model: Model) -> Tensor:
    """W_E V O W_U of every head of layer 0, [heads, vocab, vocab] float64, from the architecture's own weights."""
    weights = {key: value.double() for key, value in model.hf.state_dict().items()}
    heads, width, size = model.n_heads, model.head_dim, model.hf.config.hidden_size
    centre = torch.eye(size, dtype=torch.float64) - 1 / size
    ones = torch.ones(size, dtype=torch.float64)
    if name == "gpt2":
        block = "transformer.h.0."
        embedding, norm, last = (
            weights[k] for k in ("transformer.wte.weight", block + "ln_1.weight", "transformer.ln_f.weight")
        )
        value = weights[block + "attn.c_attn.weight"][:, 2 * size :].view(size, heads, width).permute(1, 0, 2)
        output = weights[block + "attn.c_proj.weight"].view(heads, width, size)
        into, post, out = centre @ norm.diag(), ones.diag(), centre @ last.diag()
    elif name == "gpt_neox":
        block = "gpt_neox.layers.0."
        embedding = weights["gpt_neox.embed_in.weight"]
        fused = weights[block + "attention.query_key_value.weight"].view(heads, 3, width, size)
        value = fused[:, 2].transpose(1, 2)
        output = weights[block + "attention.dense.weight"].T.reshape(heads, width, size)
        into = centre @ weights[block + "input_layernorm.weight"].diag()
        post, out = ones.diag(), centre @ weights["gpt_neox.final_layer_norm.weight"].diag()
    else:
        block = "model.layers.0."
        embedding = weights["model.embed_tokens.weight"]
        kv = model.n_kv_heads
        if name == "phi3":
            table = weights[block + "self_attn.qkv_proj.weight"][(heads + kv) * width :]
        else:
            table = weights[block + "self_attn.v_proj.weight"]
        value = table.view(kv, width, size).transpose(1, 2).repeat_interleave(heads // kv, 0)
        output = weights[block + "self_attn.o_proj.weight"].T.reshape(heads, width, size)
        shift = 1 if name == "gemma2" else 0  # Gemma's gain is 1 + weight
        into = (weights[block + "input_layernorm.weight"] + shift).diag()
        out = (weights["model.norm.weight"] + shift).diag()
        post = (weights[block + "post_attention_layernorm.weight"] + 1).diag() if name == "gemma2" else ones.diag()
    unembedding = weights["embed_out.weight" if "embed_out.weight" in weights else "lm_head.weight"]
    unembedding = unembedding - unembedding.mean(0)
    return embedding @ into @ value @ output @ post @ out @ unembedding.T


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama", "gemma2", "phi3"])
def test_scores_equal_those_of_the_full_circuit_written_out(name: str):
    model = model_of(name)
    eigenvalues = torch.linalg.eigvals(written_out(name, model))
    expected = eigenvalues.real.sum(-1) / eigenvalues.abs().sum(-1)
    product = embedding_product(*vocabulary_tables(model))
    found = copying_score(layer_cores(projections(model)[0], product, find_norms(model)))
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)
    assert expected.abs().max() > 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_in_half_precision_are_those_of_the_full_one(dtype: torch.dtype):
    full, half = model_of("gpt2"), model_of("gpt2")
    half.hf.to(dtype)  # type: ignore[arg-type]
    found = copying.measure(half)
    assert found.data["unread"] == []
    torch.testing.assert_close(found.data["copying"], copying.measure(full).data["copying"], rtol=0, atol=0.01)


def test_a_layer_that_is_not_linear_has_no_scores_and_says_so():
    model = model_of("llama")
    gates = torch.randn(48, 48)
    model.seam.modules[1].register_forward_hook(
        lambda _, args, kwargs, result: (result[0] * torch.sigmoid(kwargs["hidden_states"] @ gates), *result[1:]),
        with_kwargs=True,
    )
    found = copying.measure(model)
    assert found.data["copying"][1].isnan().all() and not found.data["copying"][0].isnan().any()
    (said,) = found.data["unread"]
    assert said.startswith("layer 1: attention is not linear in its input")


def test_a_model_without_matching_tables_has_no_scores_and_says_so():
    model = model_of("llama")
    model.hf.set_output_embeddings(torch.nn.Linear(48, 90, bias=False))
    found = copying.measure(model)
    assert found.data["copying"].isnan().all()
    assert found.data["unread"] == [
        "all layers: expected an embedding and an unembedding of [vocab, hidden], got [96, 48] and [90, 48]"
    ]


@pytest.fixture(scope="module")
def scores(llama: Model) -> Measured:
    return copying.measure(llama)


def test_every_head_of_the_packaged_model_has_a_score(scores: Measured):
    assert scores.data["unread"] == [] and scores.data["norms"].startswith("gains of the input norms and the final")
    assert scores.data["copying"].abs().max() <= 1 and not scores.data["copying"].isnan().any()


@torch.no_grad()
def test_high_scores_raise_the_tokens_own_logit_and_low_ones_lower_it(llama: Model, scores: Measured):
    """The claim itself: what attending to a token does to that token's own logit, head by head, over 500 tokens."""
    norms = find_norms(llama)
    weight, _ = vocabulary_tables(llama)
    ids = torch.randperm(llama.vocab - 100, generator=torch.Generator().manual_seed(0))[:500] + 100
    table = weight - weight.mean(0)
    raised = torch.zeros(llama.n_layers, llama.n_heads)

    def visit(maps: Projections) -> None:
        before = norms.before[maps.layer]
        assert isinstance(before, Gain) and norms.final is not None
        for head in range(llama.n_heads):
            written = (weight[ids] * before.gain) @ circuit(maps, head) * norms.final.gain
            raised[maps.layer, head] = ((written * table[ids]).sum(-1) > 0).float().mean()

    visit_projections(llama.hf, llama.seam, llama.stream, visit)
    order = scores.data["copying"].flatten().argsort()
    assert raised.flatten()[order[-20:]].mean() > 0.9
    assert raised.flatten()[order[:20]].mean() < 0.1
