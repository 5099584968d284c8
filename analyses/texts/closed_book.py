"""Twenty questions that a small instruction-tuned model answers from its weights, with nothing to copy from.

They measure what else breaks when heads are pruned: SmolLM2-135M-Instruct answers 15 of them (0.75).
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """A question and the answers that count, each a word or phrase."""

    question: str
    answers: tuple[str, ...]

    def answered(self, generated: str) -> bool:
        """Return whether the generated text holds one of the answers as a whole word, whatever the case."""
        return any(re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", generated, re.IGNORECASE) for answer in self.answers)


FACTS = (
    Fact("What is the capital of France?", ("Paris",)),
    Fact("What is the capital of Japan?", ("Tokyo",)),
    Fact("What is the capital of Italy?", ("Rome",)),
    Fact("What is the capital of Germany?", ("Berlin",)),
    Fact("What is the capital of Russia?", ("Moscow",)),
    Fact("How many days are there in a week?", ("seven", "7")),
    Fact("How many months are there in a year?", ("twelve", "12")),
    Fact("How many legs does a spider have?", ("eight", "8")),
    Fact("What is the largest planet in the solar system?", ("Jupiter",)),
    Fact("What is the largest ocean on Earth?", ("Pacific",)),
    Fact("What is the tallest mountain on Earth?", ("Everest",)),
    Fact("Who wrote the play Romeo and Juliet?", ("Shakespeare",)),
    Fact("Who painted the Mona Lisa?", ("Leonardo", "da Vinci")),
    Fact("Who developed the theory of relativity?", ("Einstein",)),
    Fact("Who was the first president of the United States?", ("Washington",)),
    Fact("What is the chemical symbol for gold?", ("Au",)),
    Fact("What is the chemical formula of water?", ("H2O", "H₂O")),
    Fact("What language is spoken in Brazil?", ("Portuguese",)),
    Fact("Which organ pumps blood through the body?", ("heart",)),
    Fact("Which animal is known as the king of the jungle?", ("lion",)),
)
