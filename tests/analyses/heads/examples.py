"""Results of `probe heads` written by hand: every claim once on each side of its rule, and once in between."""

from __future__ import annotations

from functools import cache

import torch

from probe.analyses.heads.catalogue import catalogue
from probe.analyses.heads.comparison import compare
from probe.analyses.heads.pruning_conditions import Condition, Conditions
from probe.analyses.heads.result import Heads
from probe.analyses.heads.retrieval import RetrievalHeads, retrieval_heads
from probe.analyses.heads.validation import Validation, validation
from probe.frame.analysis import Facts
from probe.heads import Head
from probe.saving.manifest import manifest_of

FACTS = Facts(name="by hand", n_layers=4, n_heads=8, n_kv_heads=2)
MANIFEST = manifest_of(None, analysis="heads", options={})
ANSWER = list(range(10, 20))
NEEDLES, PASSAGES = 20, 6


def needle(index: int, copied: dict[Head, int]) -> dict[str, object]:
    """A retrieved needle of which each head copied this many of the ten answer tokens."""
    return {
        "wanted_length": 300, "length": 300, "depth": 50.0, "depth_reached": 50.0,
        "family": ("numbers", "activities")[index % 2], "needle": "", "question": "", "answer": "", "generated": "",
        "success": True, "tokens": 360, "prompt": "", "bos": False, "answer_ids": ANSWER, "emitted": ANSWER,
        "copied": [[step, *head] for head, count in copied.items() for step in range(count)],
    }  # fmt: skip


def retrieval(always: int, sometimes: int = 0) -> RetrievalHeads:
    """Six needles, copied whole by some heads, and by others only once."""
    heads = [Head(*divmod(index, FACTS.n_heads)) for index in range(always + sometimes)]
    samples = [
        needle(index, dict.fromkeys(heads[:always], 10) | (dict.fromkeys(heads[always:], 7) if index == 0 else {}))
        for index in range(6)
    ]
    return retrieval_heads(samples, FACTS, MANIFEST, variant="set")


def checked(needles: tuple[float, float], facts: float, prose: tuple[float, float], spread: float) -> Validation:
    """Shares answered with the top and with random heads pruned, and rises of the loss (zero, uniform)."""
    ranked = tuple(Head(layer, head) for layer in range(4) for head in range(8))
    conditions = Conditions(ranked, (5, 10), ("zero", "uniform"), seed=1)

    def value(task: str, condition: Condition, index: int) -> float:
        if task == "prose":
            rise = 0 if condition.group != "top" else prose[condition.fill == "uniform"]
            return 3 + index / 10 + rise * (1 + spread * (-1) ** index)
        share = {"top": needles[0] if task == "needles" else facts, "random": needles[1]}.get(condition.group, 1.0)
        return float(index < share * NEEDLES)

    records = [
        {
            "task": task, "sample": f"{task} {index}", "answer": "", "bos": False,
            "heads": [[str(head) for head in heads] for heads in conditions.draw(f"{task} {index}").values()],
            "values": [value(task, condition, index) for condition in conditions.all],
            "generated": [""] * len(conditions.all),
        }
        for task, count in (("needles", NEEDLES), ("closed book", NEEDLES), ("prose", PASSAGES))
        for index in range(count)
    ]  # fmt: skip
    return validation(records, conditions, "decode", MANIFEST)


def heads(found: RetrievalHeads, induction: torch.Tensor, validated: Validation | None) -> Heads:
    """A result of these parts, compared with itself."""
    generator = torch.Generator().manual_seed(0)
    samples = {"retrieval": found.per_sample, "induction": induction.expand(3, -1, -1)}
    copying = 2 * torch.rand(4, 8, generator=generator) - 1
    copying[3, 7] = torch.nan
    table = catalogue(
        samples, MANIFEST, n_kv_heads=2, computed={"copying": copying}, notes=["copying: no norm gains folded in"]
    )  # fmt: skip
    return Heads(
        manifest=MANIFEST, retrieval=found, catalogue=table, validation=validated, comparison=compare(table, table)
    )


@cache
def results() -> list[Heads]:
    """Every claim holds in the first result, fails in the second, and cannot be told in the third."""
    few, many, unsure = retrieval(always=1), retrieval(always=8), retrieval(always=1, sometimes=3)
    noise = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
    return [
        heads(few, few.score, checked(needles=(0.0, 1.0), facts=1.0, prose=(0.0, 0.4), spread=0.1)),
        heads(many, 1 - many.score, checked(needles=(1.0, 0.0), facts=0.0, prose=(0.4, 0.0), spread=0.1)),
        heads(unsure, unsure.score + noise, checked(needles=(0.5, 0.7), facts=0.6, prose=(0.4, 0.5), spread=1.0)),
        heads(few, few.score, None),
    ]


EXAMPLES = {"heads": results}
