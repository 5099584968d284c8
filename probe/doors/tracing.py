"""How does a model run under nnsight? nnsight traces the Hugging Face object itself, so nothing needs to be delegated.

The attention function that is registered with transformers is called as without nnsight, and recordings and
interventions apply to every forward pass inside a trace. If the command line has `-v` or `--verbose`, nnsight 0.8 turns
on a debug mode when it is imported.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from transformers import PreTrainedModel, PreTrainedTokenizerBase

if TYPE_CHECKING:
    from nnsight.modeling.transformers import TransformersModel


def traced(hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> TransformersModel:
    """Return an nnsight model over `hf` itself: `with traced.trace(ids)` and `traced.generate(ids)` run its modules."""
    from nnsight.modeling.transformers import TransformersModel

    # nnsight sets padding on the tokenizer
    return TransformersModel(hf, tokenizer=copy.deepcopy(tokenizer), task="text-generation")
