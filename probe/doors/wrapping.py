"""How does a model that is loaded already become a Model? With `wrap`, whichever of three libraries loaded it.

`wrap(hf, tokenizer)` takes a transformers model, `wrap(bridge)` a TransformerLens bridge, `wrap(traced)` an nnsight
model. The Model works on the very object that is given: no weight is loaded again or copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from probe.errors import UsageError
from probe.models import Model

if TYPE_CHECKING:
    from nnsight.modeling.transformers import TransformersModel
    from transformer_lens.model_bridge import TransformerBridge


def wrap(
    given: PreTrainedModel | TransformerBridge | TransformersModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    implementation: str = "auto",
) -> Model:
    """Return a Model around a transformers model, a TransformerLens bridge or an nnsight model that is loaded already.

    A bridge becomes `model.lens` and an nnsight model `model.nnsight`: the very objects, with the tokenizers that they
    have. From then on a bridge's attention runs through the engine, as `probe.doors.lens` says. A transformers model
    needs its tokenizer with it. Raises UsageError for any other object, and for a model without weights or tokenizer.
    """
    found: Any = given
    family = {base.__module__.split(".")[0] for base in type(given).__mro__}
    hf: object = given
    door = None
    if "transformer_lens" in family and hasattr(found, "original_model"):
        from probe.doors.lens import through_engine

        hf, door = found.original_model, "lens"
        tokenizer = found.tokenizer if tokenizer is None else tokenizer
        if isinstance(hf, PreTrainedModel):
            through_engine(found, implementation=implementation)
    elif "nnsight" in family and hasattr(found, "_module"):
        hf, door = found._module, "nnsight"
        tokenizer = getattr(found, "tokenizer", None) if tokenizer is None else tokenizer
    if not isinstance(hf, PreTrainedModel):
        raise UsageError(
            f"wrap cannot take {type(given).__name__}: "
            "give a transformers model, a TransformerLens bridge or an nnsight model"
        )
    if any(parameter.is_meta for parameter in hf.parameters()):
        raise UsageError(f"the {type(given).__name__} has no weights yet: load it first (nnsight: dispatch=True)")
    if tokenizer is None:
        raise UsageError(f"the {type(given).__name__} comes without a tokenizer: pass tokenizer=")
    model = Model(hf, tokenizer, implementation=implementation)
    if door is not None:
        model.__dict__[door] = given
    return model
