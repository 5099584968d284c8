"""The samples of the causal check: held-out needles, closed-book facts and prose, each under every pruning."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from probe.analyses.heads.needle_prompts import encode, open_window
from probe.analyses.heads.needle_runs import Plan, stopper
from probe.analyses.heads.pruned_runs import Phase, Row, decode_pruned, prose_losses
from probe.analyses.heads.pruning_conditions import Conditions
from probe.analyses.heads.retrieval_scores import found
from probe.analyses.texts.closed_book import FACTS

if TYPE_CHECKING:
    from probe.models import Model
    from probe.tokens import Tokens

NEEDLES, CLOSED_BOOK, PROSE = "needles", "closed book", "prose"
FACT_TOKENS = 16
"""The longest closed-book answer."""

Sample = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """One validation: its samples in order, and what each condition makes of them."""

    model: Model
    plan: Plan
    conditions: Conditions
    phase: Phase
    passages: int
    passage_tokens: int
    batch_size: int

    def __len__(self) -> int:
        return len(self.plan) + len(FACTS) + self.passages

    def options(self) -> dict[str, Any]:
        return {
            **self.plan.config(),
            "ranked": [str(head) for head in self.conditions.ranked[: max(self.conditions.ks)]],
            "ks": list(self.conditions.ks),
            "fills": list(self.conditions.fills),
            "phase": self.phase,
            "passages": self.passages,
            "passage_tokens": self.passage_tokens,
            "batch_size": self.batch_size,
        }

    def samples(self, *, skip: int) -> Iterator[Sample]:
        """Finished samples from number `skip` on: needles, then facts, then prose."""
        for index, (length, repeat) in enumerate(self.plan.groups()):
            first = index * self.plan.per_group
            if skip < first + self.plan.per_group:
                yield from self._needles(length, repeat, first, skip=skip - first)
        for index in range(len(FACTS)):
            if skip <= len(self.plan) + index:
                yield self._fact(index)
        for index in range(self.passages):
            if skip <= len(self.plan) + len(FACTS) + index:
                yield self._passage(index)

    def _needles(self, length: int, repeat: int, first: int, *, skip: int) -> Iterator[Sample]:
        group = self.plan.group(self.model, length, repeat)
        read = group.read(self.model) if self.phase == "decode" else None
        for index, prompt in enumerate(group.prompts):
            if index < skip:
                continue
            name = f"needle {first + index}"
            rows = self._rows(name)
            written = decode_pruned(
                self.model,
                prompt.tokens.ids,
                rows,
                phase=self.phase,
                cache=None if read is None else group.cache(self.model, read, prompt),
                max_new_tokens=self.plan.max_new_tokens,
                stop=stopper(self.model),
                batch_size=self.batch_size,
            )
            hits = [float(found(text, prompt.needle.answer)) for text in written]
            yield _sample(NEEDLES, name, prompt.needle.answer, prompt.tokens, rows, hits, written)

    def _fact(self, index: int) -> Sample:
        fact, name = FACTS[index], f"fact {index}"
        style = self.plan.prompt
        text = self.model.chat(fact.question) if style == "chat" else f"Question: {fact.question}\nAnswer:"
        tokens = encode(self.model, text, style=style)
        rows = self._rows(name)
        written = decode_pruned(
            self.model,
            tokens.ids,
            rows,
            phase=self.phase,
            cache=self.model.prefill(tokens.ids[:-1]) if self.phase == "decode" else None,
            max_new_tokens=FACT_TOKENS,
            stop=stopper(self.model),
            batch_size=self.batch_size,
        )
        hits = [float(fact.answered(each)) for each in written]
        return _sample(CLOSED_BOOK, name, fact.answers[0], tokens, rows, hits, written)

    def _passage(self, index: int) -> Sample:
        name = f"passage {index}"
        starts = self.plan.haystack.starts()
        start = random.Random(f"{self.plan.seed}/{name}").choice(starts)
        window = open_window(self.model, self.plan.haystack, start=start, length=self.passage_tokens)
        tokens = self.model.tokens(window.text[: window.ends[self.passage_tokens - 1]])
        rows = self._rows(name)
        losses = prose_losses(self.model, tokens.ids, rows, batch_size=self.batch_size)
        return _sample(PROSE, name, "", tokens, rows, losses, [""] * len(rows))

    def _rows(self, sample: str) -> list[Row]:
        return list(self.conditions.draw(sample).items())


def _sample(
    task: str, name: str, answer: str, tokens: Tokens, rows: Sequence[Row], values: Sequence[float],
    written: Sequence[str],
) -> Sample:  # fmt: skip
    return {
        "task": task,
        "sample": name,
        "answer": answer,
        "prompt": tokens.hash,
        "bos": tokens.bos,
        "heads": [[str(head) for head in heads] for _, heads in rows],
        "values": list(values),
        "generated": list(written),
    }
