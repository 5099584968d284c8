"""Copying score: whether attending to a token raises that same token's logit (Elhage et al. 2021, OV eigenvalues).

The full OV circuit of a head is the vocab x vocab map W_E V O W_U from the token attended to, to the logits that the
head adds. Its eigenvalues l are mostly positive when tokens raise themselves:

    copying = sum Re(l) / sum |l|

A score of 1 means that the head copies (it raises the logits of the tokens that it attends to), -1 that it suppresses
them, about 0 that it does neither.

The non-zero eigenvalues of W_E V O W_U are those of O (W_U W_E) V, which is only value_dim x value_dim; the hidden x
hidden product W_U W_E is accumulated once. Under grouped-query attention V is that of the head's KV head. Norm gains
are folded in (with LayerNorm's centring), the division by the length of x is not: it differs by token and layer.
Biases, position embeddings and the positive multipliers of some models are left out.

We differ from the paper in centring W_U over the vocabulary first: a constant added to all logits says nothing about
tokens, but where embeddings share a large mean it dominates the spectrum (centring lowers the largest eigenvalue of
W_U W_E from 260,022 to 31,252 in SmolLM2-135M). The score
reads a token's own embedding, not what earlier layers have made of it, so a low score in a deep layer does not say that
the head cannot copy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from probe.analyses.heads.norm_gains import Norms, find_norms
from probe.engine.attention import text_config
from probe.engine.projections import Projections, visit_projections
from probe.errors import ProbeError
from probe.frame.analysis import Measured
from probe.models import Model

TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest relative error of a layer's OV maps on random vectors at which the module still counts as linear."""

VOCAB_CHUNK = 8192


def copying_score(core: Tensor) -> Tensor:
    """Return sum Re(l) / sum |l| over the eigenvalues l of `core`: [..., n, n] -> [...], -1..1; NaN where all are 0."""
    if core.ndim < 2 or core.shape[-1] != core.shape[-2]:
        raise ValueError(f"core must be [..., n, n], got {list(core.shape)}")
    eigenvalues = torch.linalg.eigvals(core.double())
    return (eigenvalues.real.sum(-1) / eigenvalues.abs().sum(-1)).to(torch.float32)


def vocabulary_tables(model: Model) -> tuple[Tensor, Tensor]:
    """Return W_E and W_U, both [vocab, hidden]; raise ProbeError where the model has no such tables of equal shape."""
    embedding = getattr(model.hf.get_input_embeddings(), "weight", None)
    unembedding = getattr(model.hf.get_output_embeddings(), "weight", None)
    if isinstance(embedding, Tensor) and isinstance(unembedding, Tensor):
        fits = embedding.shape == unembedding.shape and embedding.shape[1] == text_config(model.hf).hidden_size
        if fits:
            return embedding, unembedding
    raise ProbeError(
        f"expected an embedding and an unembedding of [vocab, hidden], got "
        f"{' and '.join('none' if table is None else str(list(table.shape)) for table in (embedding, unembedding))}"
    )


def embedding_product(embedding: Tensor, unembedding: Tensor) -> Tensor:
    """Return W_U W_E [hidden, hidden] float32 from both [vocab, hidden] tables, W_U centred over the vocabulary.

    The sum runs over a slice of the vocabulary at a time: float32 copies of both tables would exceed a small model.
    """
    product = torch.zeros(embedding.shape[1], embedding.shape[1], device=embedding.device)
    mean = unembedding.mean(0, dtype=torch.float32)
    for into, out in zip(embedding.split(VOCAB_CHUNK), unembedding.split(VOCAB_CHUNK), strict=True):
        product += ((out.float() - mean).T @ into.float().to(out.device)).to(product.device)
    return product


def layer_cores(maps: Projections, product: Tensor, norms: Norms) -> Tensor:
    """Return [heads, value_dim, value_dim] with the non-zero eigenvalues of W_E V O W_U, norm gains folded in."""
    heads, kv_heads = maps.output.shape[0], maps.value.shape[0]
    hidden, value_dim = maps.value.shape[1:]
    read = maps.value.transpose(0, 1).reshape(hidden, -1).cpu()
    before, after = norms.before[maps.layer], norms.after[maps.layer]
    if before is not None:
        read = before.fold(read)
    through = product.cpu() @ read
    for norm in (norms.final, after):  # the one nearest to the unembedding first
        if norm is not None:
            through = norm.fold(through)
    through = through.view(hidden, kv_heads, value_dim).transpose(0, 1)
    return maps.output.cpu() @ through.repeat_interleave(heads // kv_heads, dim=0)


@torch.no_grad()
def measure(model: Model) -> Measured:
    """Return the score of every head, [layers, heads] in -1..1, from a pass over about `hidden` sequences of one token.

    It is NaN where a head's OV circuit could not be read: `unread` says why. `norms` says which gains are folded in.
    """
    score = torch.full((model.n_layers, model.n_heads), torch.nan)
    unread: list[str] = []
    norms = find_norms(model)

    def visit(maps: Projections) -> None:
        error = max(maps.value_error, maps.output_error)
        if error > TOLERANCE[model.dtype]:
            unread.append(f"layer {maps.layer}: attention is not linear in its input (off by {error:.2g})")
        else:
            score[maps.layer] = copying_score(layer_cores(maps, product, norms))

    try:
        product = embedding_product(*vocabulary_tables(model))
    except ProbeError as error:
        unread.append(f"all layers: {error}")
    else:
        visit_projections(model.hf, model.seam, model.stream, visit)
    return Measured({"copying": score, "norms": norms.describe(), "unread": unread})
