"""The nnsight door: a traced model over a model's own weights and modules; its attention is the engine's as it stands.

nnsight runs the Hugging Face object itself, so what is registered with transformers is called as without it, and
recordings and interventions apply to every forward pass inside a trace. Under `-v` or `--verbose` on the command line
nnsight 0.8 turns on a debug mode when it is imported.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from transformers import PreTrainedModel, PreTrainedTokenizerBase

if TYPE_CHECKING:
    from nnsight.modeling.transformers import TransformersModel


def traced(hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> TransformersModel:
    """An nnsight model over `hf` itself: `with traced.trace(ids)` and `traced.generate(ids)` run its modules."""
    from nnsight.modeling.transformers import TransformersModel

    # nnsight sets padding on the tokenizer
    return TransformersModel(hf, tokenizer=copy.deepcopy(tokenizer), task="text-generation")
