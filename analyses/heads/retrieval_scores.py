"""Retrieval scores from where heads look and what the model says (Wu et al. 2024, "Retrieval Head Mechanistically
Explains Long-Context Factuality").

At decoding step t, head h puts its largest weight on position i*, and the model emits token w_t. The head copies the
answer when i* lies in the answer's span N of the prompt x and x[i*] = w_t.

set:      |{distinct answer tokens that h copied}| / |{distinct answer tokens}|, the paper's formula, at most 1
per_step: (number of steps at which h copied) / |N|, the released code's; over 1 when the model repeats itself
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def copied(top_key: Tensor, emitted: Tensor, prompt: Tensor, answer: range) -> Tensor:
    """Return whether each head copied the answer at each step: [steps, layers, heads] positions -> same shape, bool.

    emitted: [steps] ids, the one that each step's logits chose. prompt: [tokens] ids. answer: its span in the prompt.
    """
    if top_key.ndim != 3 or emitted.shape != top_key.shape[:1]:
        raise ValueError(
            f"expected top_key [steps, layers, heads] and emitted [steps], "
            f"got {list(top_key.shape)} and {list(emitted.shape)}"
        )
    if not 0 <= answer.start < answer.stop <= len(prompt):
        raise ValueError(f"expected an answer span within the prompt's {len(prompt)} tokens, got {answer}")
    inside = (top_key >= answer.start) & (top_key < answer.stop)
    looked_at = prompt[top_key.clamp(0, len(prompt) - 1)]
    return inside & (looked_at == emitted[:, None, None])


def set_score(copies: Tensor, emitted: Tensor, answer: Tensor) -> Tensor:
    """Return the share of distinct answer tokens copied: [steps, layers, heads] bool -> [layers, heads] float64."""
    distinct = answer.unique()
    found = torch.stack([copies[emitted == token].any(0) for token in distinct])
    return found.double().mean(0)


def per_step_score(copies: Tensor, emitted: Tensor, answer: Tensor) -> Tensor:
    """Return copying steps per answer token, which may exceed 1: [steps, layers, heads] -> [layers, heads] float64."""
    if emitted.shape != copies.shape[:1]:
        raise ValueError(f"expected emitted [{copies.shape[0]} steps], got {list(emitted.shape)}")
    return copies.double().sum(0) / len(answer)


SCORES: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"set": set_score, "per_step": per_step_score}


def recall(generated: str, answer: str) -> float:
    """Return the share of the answer's words in the generated text, repeats counted (ROUGE-1 recall, no stemming)."""
    wanted, said = Counter(_words(answer)), Counter(_words(generated))
    total = sum(wanted.values())
    if not total:
        return float(answer.strip() in generated)
    return sum((wanted & said).values()) / total


def found(generated: str, answer: str) -> bool:
    """Return whether the needle was retrieved: whether the text holds more than half of the answer's words."""
    return recall(generated, answer) > 0.5


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
