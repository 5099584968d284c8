"""The samples of a validation: held-out needles, closed-book questions and prose, each read under every condition.

A held-out needle has a city and an answer that no head was scored on, in other prose. A closed-book question has no
context to copy from. A passage of prose is not asked anything: its next-token loss is measured.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import DynamicCache

from probe.analyses.heads.needle_prompts import encode, open_window
from probe.analyses.heads.needle_runs import Questions, Reader, stopper
from probe.analyses.heads.needles import HELD_OUT
from probe.analyses.heads.pruned_runs import Phase, decode_pruned, prose_losses
from probe.analyses.heads.pruning_conditions import Conditions
from probe.analyses.heads.retrieval_scores import found
from probe.analyses.texts.closed_book import FACTS
from probe.analyses.texts.haystacks import Haystack
from probe.errors import UsageError
from probe.frame.analysis import Measured, Prompt
from probe.models import Model
from probe.tokens import Tokens

NEEDLES, CLOSED_BOOK, PROSE = "needles", "closed book", "prose"
FACT_TOKENS = 16
"""The longest closed-book answer, in tokens."""


def held_out(haystack: Haystack, **changes: Any) -> Questions:
    """Return needle questions about cities, activities and numbers that no head was scored on."""
    asked = {"lengths": (300, 600), "depths": (10, 30, 50, 70, 90), "seed": 1, "pool": HELD_OUT}
    return Questions(haystack=haystack, **asked | changes)


@dataclass(frozen=True, kw_only=True)
class Check:
    """A validation: its samples, how the heads are pruned, and how many conditions run in one batch.

    most: the largest number of needles, and of closed-book questions; fewer than there are lie evenly among them.
    passages, passage_tokens: of the prose. Each row of a batch has a copy of the prompt's key-value cache.
    """

    questions: Questions
    conditions: Conditions
    phase: Phase
    most: int = 20
    passages: int = 6
    passage_tokens: int = 128
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.phase not in ("decode", "all"):
            raise UsageError(f"--phase: expected decode or all, got {self.phase!r}")
        if self.batch_size < 1 or self.passages < 1 or self.passage_tokens < 2:
            raise UsageError(f"expected batch_size, passages >= 1, passage_tokens >= 2, got {self.batch_size}, "
                             f"{self.passages}, {self.passage_tokens}")  # fmt: skip

    def samples(self) -> list[str]:
        """Return the names of all samples in order: needles, closed-book questions, passages."""
        counts = {"needle": len(self.questions), "fact": len(FACTS)}
        asked = [
            f"{task} {index * count // min(count, self.most)}"
            for task, count in counts.items()
            for index in range(min(count, self.most))
        ]
        return [*asked, *(f"passage {index}" for index in range(self.passages))]

    def measure(self, model: Model, reader: Reader, name: str) -> Measured:
        """Return what one sample gives under every condition; `reader` reads this check's questions."""
        task, index = name.split()
        return {"needle": self._needle, "fact": self._fact, "passage": self._passage}[task](
            model, reader, name, int(index)
        )

    def _needle(self, model: Model, reader: Reader, name: str, index: int) -> Measured:
        prompt, group = reader.read(model, index)
        answer = prompt.needle.answer
        cache = group.cache(model, prompt) if self.phase == "decode" else None
        return self._asked(
            model, NEEDLES, name, prompt.tokens, cache, answer, lambda text: found(text, answer),
            max_new_tokens=self.questions.max_new_tokens,
        )  # fmt: skip

    def _fact(self, model: Model, reader: Reader, name: str, index: int) -> Measured:
        fact, style = FACTS[index], self.questions.style
        text = model.chat(fact.question) if style == "chat" else f"Question: {fact.question}\nAnswer:"
        tokens = encode(model, text, style=style)
        cache = model.prefill(tokens.ids[:-1]) if self.phase == "decode" else None
        return self._asked(
            model, CLOSED_BOOK, name, tokens, cache, fact.answers[0], fact.answered, max_new_tokens=FACT_TOKENS
        )

    def _passage(self, model: Model, reader: Reader, name: str, index: int) -> Measured:
        prose, length = self.questions.haystack, self.passage_tokens
        start = random.Random(f"{self.questions.seed}/{name}").choice(prose.starts())
        window = open_window(model, prose, start=start, length=length)
        tokens = model.tokens(window.text[: window.ends[length - 1]])
        rows = list(self.conditions.draw(name).items())
        losses = prose_losses(model, tokens.ids, rows, batch_size=self.batch_size)
        return self._measured(PROSE, name, tokens, losses, [""] * len(rows))

    def _asked(
        self, model: Model, task: str, name: str, tokens: Tokens, cache: DynamicCache | None, answer: str,
        right: Callable[[str], bool], *, max_new_tokens: int,
    ) -> Measured:  # fmt: skip
        """Return whether the answer to a prompt is right under each condition."""
        emitted = decode_pruned(
            model, tokens.ids, list(self.conditions.draw(name).items()), phase=self.phase, cache=cache,
            max_new_tokens=max_new_tokens, stop=stopper(model), batch_size=self.batch_size,
        )  # fmt: skip
        texts = [str(model.tokenizer.decode(ids, skip_special_tokens=True)) for ids in emitted]
        hits = [float(right(text)) for text in texts]
        # the first row is the unpruned model's
        return self._measured(task, name, tokens, hits, texts, answer=answer, written=len(emitted[0]))

    def _measured(
        self, task: str, name: str, tokens: Tokens, values: Sequence[float], texts: Sequence[str], *, answer: str = "",
        written: int = 0,
    ) -> Measured:  # fmt: skip
        record: dict[str, Any] = {
            "task": task,
            "sample": name,
            "answer": answer,
            "bos": tokens.bos,
            "heads": [[str(head) for head in heads] for heads in self.conditions.draw(name).values()],
            "values": list(values),
            "generated": list(texts),
        }
        return Measured(record, [Prompt.of(tokens, written=written)])
