"""Needle questions of a run: which prompts, and on what every head had its largest weight while the answer was written.

Prompts of one length and repeat share a stretch of prose, so they begin alike: that beginning is read once, and each
prompt continues a copy of its key-value cache. The shared part depends on the questions alone, so the numbers of a
needle do not depend on which needles were asked before it, and a resumed run gives exactly those of an uninterrupted
one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from probe.analyses.heads.needle_prompts import NeedlePrompt, Style, ask, encode, hide, open_window
from probe.analyses.heads.needles import FAMILIES, MAIN, Needle, Pool
from probe.analyses.heads.retrieval_scores import copied, found
from probe.analyses.texts.haystacks import Haystack
from probe.engine.decoding import crop, repeat
from probe.errors import UsageError
from probe.frame.analysis import Measured, Prompt
from probe.kernels.contract import Request
from probe.models import Model


@dataclass(eq=False)
class Group:
    """Prompts that begin alike. shared: [tokens] ids of their prose, as far as the deepest needle leaves it whole.

    read: the key-value cache of the shared beginning, once a prompt has needed it; no number depends on it.
    """

    prompts: tuple[NeedlePrompt, ...]
    shared: Tensor
    read: DynamicCache | None = None

    def cache(self, model: Model, prompt: NeedlePrompt) -> DynamicCache:
        """Return the cache of a prompt without its last token: a copy of `read`, cut to what is common, continued."""
        self.read = self.read or model.prefill(self.shared)
        ids = prompt.tokens.ids[:-1]
        keep = common_prefix(self.shared, ids)
        return model.prefill(ids[keep:], cache=crop(repeat(self.read, 1), keep))


@dataclass(frozen=True, kw_only=True)
class Questions:
    """The needle questions of a run: every length, depth and needle, `samples` times over.

    lengths: tokens of prose and needle. depths: percent of the prose before the needle. needles: your own instead of
    the families'. pool: the words that the families' needles are made of.
    """

    haystack: Haystack
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    families: tuple[str, ...] = tuple(FAMILIES)
    needles: tuple[Needle, ...] | None = None
    samples: int = 1
    seed: int = 0
    style: Style = "chat"
    max_new_tokens: int = 24
    pool: Pool = field(default=MAIN, repr=False)

    @property
    def per_group(self) -> int:
        """Return the number of prompts that share one stretch of prose."""
        return len(self.depths) * (len(self.families) if self.needles is None else len(self.needles))

    def __len__(self) -> int:
        return self.samples * len(self.lengths) * self.per_group

    def check(self, model: Model) -> None:
        """Raise UsageError or ProbeError, in one line, for questions that this model or haystack cannot serve."""
        longest = max(self.lengths)
        needle = self._needles(longest, self.depths[0], 0)[0]
        text, _ = ask(model, "", needle.question, style=self.style)
        total = longest + len(encode(model, text, style=self.style)) + self.max_new_tokens
        if total > model.context:
            raise self._too_long(model, longest, total)
        open_window(model, self.haystack, start=0, length=longest)

    def groups(self) -> Iterator[tuple[int, int]]:
        """Return (length, repeat) of each group of prompts that share their prose, shortest first."""
        return product(sorted(self.lengths), range(self.samples))

    def group(self, model: Model, length: int, repeat: int) -> Group:
        """Return the prompts of one group in order, and the beginning of their common prose."""
        starts = self.haystack.starts()
        start = random.Random(f"{self.seed}/prose/{length}/{repeat}").choice(starts)
        window = open_window(model, self.haystack, start=start, length=length)
        prompts = tuple(
            hide(model, needle, window, length=length, depth=depth, style=self.style)
            for depth in self.depths
            for needle in self._needles(length, depth, repeat)
        )
        longest = max(len(prompt.tokens) for prompt in prompts)
        if longest + self.max_new_tokens > model.context:
            raise self._too_long(model, length, longest + self.max_new_tokens)
        bare, _ = ask(model, window.text[: window.ends[length - 1]], "", style=self.style)
        ids = encode(model, bare, style=self.style).ids
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


class Reader:
    """Reads the questions one by one, and keeps the group of prompts that was read last."""

    def __init__(self, questions: Questions) -> None:
        self.questions = questions
        self._at: tuple[int, int] | None = None
        self._group: Group | None = None

    def read(self, model: Model, index: int) -> tuple[NeedlePrompt, Group]:
        """Return the prompt of question `index`, and the group that makes its key-value cache."""
        number, place = divmod(index, self.questions.per_group)
        at = list(self.questions.groups())[number]
        if self._group is None or at != self._at:
            self._at, self._group = at, self.questions.group(model, *at)
        return self._group.prompts[place], self._group


def common_prefix(a: Tensor, b: Tensor) -> int:
    """Return the number of tokens that two id sequences share at their beginning."""
    size = min(len(a), len(b))
    return int((a[:size] == b[:size]).int().cumprod(0).sum())


def stopper(model: Model) -> Callable[[list[int]], bool]:
    """Return the test for the end of an answer: an end token of the model, or a token with a line break."""
    declared = getattr(model.hf.generation_config, "eos_token_id", None)
    ends = set(declared) if isinstance(declared, list | tuple) else {declared}
    ends.add(model.tokenizer.eos_token_id)

    def stop(ids: list[int]) -> bool:
        return ids[-1] in ends or "\n" in model.tokenizer.decode(ids[-1:])

    return stop


def put(model: Model, prompt: NeedlePrompt, cache: DynamicCache, *, max_new_tokens: int) -> Measured:
    """Return what came of one question: the answer, and at which step which head copied a token of it.

    cache: of the prompt without its last token; it is extended in place. Weights count from the step that reads the
    last prompt token on; of equal largest weights, the one at the lower position counts.
    """
    ids = prompt.tokens.ids
    with model.recording(Request(top=1)) as recording:
        emitted = model.greedy(cache, ids[None, -1:], max_new_tokens=max_new_tokens, stop=stopper(model))[0]
    top_key = recording.stats().top_key
    assert top_key is not None  # asked for above
    copies = copied(top_key[:, 0, :, :, 0].permute(2, 0, 1), torch.tensor(emitted), ids, prompt.answer)
    generated = str(model.tokenizer.decode(emitted, skip_special_tokens=True))
    record: dict[str, Any] = {
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
    return Measured(record, [Prompt.of(prompt.tokens, written=len(emitted))])
