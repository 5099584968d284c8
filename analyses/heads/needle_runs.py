"""Putting needle questions to a model: which prompts, and what every head looked at while the answer was written.

Prompts of one length and repeat share a stretch of prose, so they begin alike: that beginning is read once, and each
prompt continues a copy of its key-value cache. The shared part is a function of the plan alone, so a sample's numbers
do not depend on which samples ran before it, and a resumed run gives exactly the numbers of an uninterrupted one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probe.analyses.heads.needle_prompts import NeedlePrompt, Style, ask, encode, hide, open_window
from probe.analyses.heads.needles import FAMILIES, MAIN, Needle, Pool
from probe.analyses.heads.retrieval_scores import copied, found
from probe.analyses.texts.haystacks import Haystack
from probe.engine.decoding import crop, repeat
from probe.errors import UsageError
from probe.kernels.contract import Request

if TYPE_CHECKING:
    from transformers import DynamicCache

    from probe.models import Model


@dataclass(frozen=True, eq=False)
class Group:
    """Prompts that begin alike. shared: [tokens] ids of their prose, as far as the deepest needle leaves it whole."""

    prompts: tuple[NeedlePrompt, ...]
    shared: Tensor

    def read(self, model: Model) -> DynamicCache:
        """The key-value cache of the shared beginning."""
        return model.prefill(self.shared)

    def cache(self, model: Model, read: DynamicCache, prompt: NeedlePrompt) -> DynamicCache:
        """The cache of a prompt without its last token: `read`, copied and cut to what is common, and the rest."""
        ids = prompt.tokens.ids[:-1]
        keep = common_prefix(self.shared, ids)
        return model.prefill(ids[keep:], cache=crop(repeat(read, 1), keep))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The needle questions of a run: every length, depth and needle, `samples` times over.

    lengths: tokens of prose and needle. depths: percent. needles: custom ones instead of the families'.
    """

    haystack: Haystack
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    families: tuple[str, ...] = tuple(FAMILIES)
    needles: tuple[Needle, ...] | None = None
    samples: int = 1
    seed: int = 0
    prompt: Style = "chat"
    max_new_tokens: int = 24
    pool: Pool = field(default=MAIN, repr=False)

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise UsageError(f"--lengths: expected positive token counts, got {list(self.lengths)}")
        if not self.depths or not all(0 <= depth <= 100 for depth in self.depths):
            raise UsageError(f"--depths: expected percentages from 0 to 100, got {list(self.depths)}")
        unknown = [family for family in self.families if family not in FAMILIES]
        if unknown or not self.families:
            raise UsageError(f"families: choose from {', '.join(FAMILIES)}, got {list(self.families)}")
        if self.samples < 1:
            raise UsageError(f"--samples: expected at least 1, got {self.samples}")
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens: expected at least 1, got {self.max_new_tokens}")
        if self.prompt not in ("chat", "plain"):
            raise UsageError(f"--prompt: expected chat or plain, got {self.prompt!r}")

    @property
    def per_group(self) -> int:
        """How many prompts share one stretch of prose."""
        return len(self.depths) * (len(self.families) if self.needles is None else len(self.needles))

    def __len__(self) -> int:
        return self.samples * len(self.lengths) * self.per_group

    def config(self) -> dict[str, Any]:
        """What decides the prompts, as JSON values."""
        needles = None if self.needles is None else [[each.text, each.question, each.answer] for each in self.needles]
        return {
            "haystack": self.haystack.name,
            "haystack_sha256": self.haystack.sha256,
            "lengths": list(self.lengths),
            "depths": list(self.depths),
            "families": list(self.families) if needles is None else None,
            "needles": needles,
            "pool_sha256": self.pool.sha256 if needles is None else None,
            "samples": self.samples,
            "seed": self.seed,
            "prompt": self.prompt,
            "max_new_tokens": self.max_new_tokens,
        }

    def check(self, model: Model) -> None:
        """Raise one line if the longest prompt cannot fit into the model's positions."""
        longest = max(self.lengths)
        needle = self._needles(longest, self.depths[0], 0)[0]
        text, _ = ask(model, "", needle.question, style=self.prompt)
        total = longest + len(encode(model, text, style=self.prompt)) + self.max_new_tokens
        if total > model.context:
            raise self._too_long(model, longest, total)

    def groups(self) -> Iterator[tuple[int, int]]:
        """(length, repeat) of each group of prompts that share their prose, shortest first."""
        return product(sorted(self.lengths), range(self.samples))

    def group(self, model: Model, length: int, repeat: int) -> Group:
        """The prompts of one group in order, and the beginning of their common prose."""
        starts = self.haystack.starts()
        start = random.Random(f"{self.seed}/prose/{length}/{repeat}").choice(starts)
        window = open_window(model, self.haystack, start=start, length=length)
        prompts = tuple(
            hide(model, needle, window, length=length, depth=depth, style=self.prompt)
            for depth in self.depths
            for needle in self._needles(length, depth, repeat)
        )
        longest = max(len(prompt.tokens) for prompt in prompts)
        if longest + self.max_new_tokens > model.context:
            raise self._too_long(model, length, longest + self.max_new_tokens)
        bare, _ = ask(model, window.text[: window.ends[length - 1]], "", style=self.prompt)
        ids = encode(model, bare, style=self.prompt).ids
        shared = max(common_prefix(ids, prompt.tokens.ids[:-1]) for prompt in prompts)
        return Group(prompts, ids[:shared])

    def _too_long(self, model: Model, length: int, tokens: int) -> UsageError:
        return UsageError(
            f"--lengths {length} makes prompts of {tokens:,} tokens with the answer, and {model.name} has "
            f"{model.context:,} positions: choose smaller --lengths"
        )

    def _needles(self, length: int, depth: float, repeat: int) -> list[Needle]:
        if self.needles is not None:
            return list(self.needles)
        return [
            FAMILIES[family](random.Random(f"{self.seed}/{family}/{length}/{depth:g}/{repeat}"), self.pool)
            for family in self.families
        ]


def common_prefix(a: Tensor, b: Tensor) -> int:
    """How many tokens two id sequences share at their beginning."""
    size = min(len(a), len(b))
    return int((a[:size] == b[:size]).int().cumprod(0).sum())


def stopper(model: Model) -> Callable[[list[int]], bool]:
    """Whether an answer has ended: at an end token of the model or a token with a line break."""
    declared = getattr(model.hf.generation_config, "eos_token_id", None)
    ends = set(declared) if isinstance(declared, list | tuple) else {declared}
    ends.add(model.tokenizer.eos_token_id)

    def stop(ids: list[int]) -> bool:
        return ids[-1] in ends or "\n" in model.tokenizer.decode(ids[-1:])

    return stop


def put(model: Model, prompt: NeedlePrompt, cache: DynamicCache, *, max_new_tokens: int) -> dict[str, Any]:
    """One finished sample as JSON values: the answer, and at which step which head copied it.

    cache: of the prompt without its last token; it is extended in place. Weights are looked at from the step that reads
    the last prompt token on, each step's largest weight with ties to the lower position.
    """
    ids = prompt.tokens.ids
    with model.recording(Request(top=1)) as recording:
        emitted = model.greedy(cache, ids[None, -1:], max_new_tokens=max_new_tokens, stop=stopper(model))[0]
    top_key = recording.stats().top_key
    assert top_key is not None  # asked for above
    copies = copied(top_key[:, 0, :, :, 0].permute(2, 0, 1), torch.tensor(emitted), ids, prompt.answer)
    generated = str(model.tokenizer.decode(emitted, skip_special_tokens=True))
    return {
        "wanted_length": prompt.wanted_length,
        "length": prompt.length,
        "depth": prompt.depth,
        "depth_reached": prompt.depth_reached,
        "family": prompt.needle.family,
        "needle": prompt.needle.text,
        "question": prompt.needle.question,
        "answer": prompt.needle.answer,
        "generated": generated,
        "success": found(generated, prompt.needle.answer),
        "tokens": len(prompt.tokens),
        "prompt": prompt.tokens.hash,
        "bos": prompt.tokens.bos,
        "answer_ids": ids[prompt.answer.start : prompt.answer.stop].tolist(),
        "emitted": emitted,
        "copied": copies.nonzero().tolist(),
    }
