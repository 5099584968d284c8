"""Colored Objects: what every prompt must be, for many seeds and the packaged tokenizer, and how the model does."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe import UsageError
from probe.analyses.circuits.tasks.accuracy import accuracy
from probe.analyses.circuits.tasks.colored_objects import COLOURS, FORMS, OBJECTS, colored_objects

SEEDS = st.integers(0, 2**32)
BLOCK = re.compile(
    r"Q: On the (?:table|desk|floor), (?:there is|you see|I see) (an?) (\w+) (\w+), (an?) (\w+) (\w+), "
    r"and (an?) (\w+) (\w+)\. What color is the (\w+)\?\nA:(?: (\w+)\n)?"
)


def blocks(text: str) -> list[tuple[dict[str, str], str, str]]:
    """Colours by object, the object asked for and the answer of each block; the text holds nothing else."""
    assert BLOCK.sub("", text) == ""
    found = []
    for parts in BLOCK.findall(text):
        articles, colours, objects = parts[0:9:3], parts[1:9:3], parts[2:9:3]
        assert set(colours) <= set(COLOURS) and set(objects) <= set(OBJECTS)
        assert len(set(colours)) == len(set(objects)) == 3
        vowels = [colour.startswith("orange") for colour in colours]
        assert list(articles) == ["an" if vowel else "a" for vowel in vowels]
        found.append((dict(zip(objects, colours, strict=True)), parts[9], parts[10]))
    return found


@settings(max_examples=12, deadline=None)
@given(SEEDS, st.integers(0, 3), st.sampled_from(FORMS))
def test_every_prompt_is_what_it_should_be(llama, seed, shots, form):
    task = colored_objects(llama, prompts=12, seed=seed, shots=shots, form=form)
    pairs = task.pairs(llama)
    assert len({(pair.clean, pair.corrupted) for pair in task.prompts}) == 12
    for row, pair in enumerate(task.prompts):
        *front, (scene, asked, nothing) = blocks(pair.clean)
        assert nothing == "" and len(front) == shots
        right = scene[asked]
        wrong = [colour for colour in scene.values() if colour != right]
        written = str.capitalize if form == "capital" else str
        assert pair.good == f" {written(right)}" and pair.choices[0] == pair.good and pair.choices[1] == pair.bad
        assert sorted(pair.choices[1:]) == sorted(f" {written(colour)}" for colour in wrong)
        # the corrupted prompt asks for another object, and nothing else is different
        *corrupted_front, (corrupted_scene, corrupted_asked, _) = blocks(pair.corrupted)
        assert corrupted_front == front and corrupted_scene == scene
        assert pair.bad == f" {written(scene[corrupted_asked])}" != pair.good
        end = f"{asked}?\nA:"
        assert pair.clean.endswith(end)
        assert pair.corrupted == pair.clean.removesuffix(end) + f"{corrupted_asked}?\nA:"
        # shots
        answers = [answer for _, _, answer in front]
        assert answers == [written(colours[object_]) for colours, object_, _ in front]
        assert len(set(answers)) == shots
        for colours, _, _ in front:
            assert not set(colours.values()) & set(scene.values())
        objects = [thing for colours, _, _ in (*front, (scene, "", "")) for thing in colours]
        assert len(set(objects)) == len(objects)
        # roles
        columns = {name: int(at[row]) for name, at in pairs.roles.items()}
        assert list(columns) == ["right", "wrong 1", "wrong 2", "query", "END"]
        words = {name: llama.tokenizer.decode(pairs.clean[row, at]) for name, at in columns.items()}
        assert [words[name].lower() for name in ("right", "wrong 1", "wrong 2")] == [
            answer.lower() for answer in pair.choices
        ]
        assert f" {asked}".endswith(words["query"])
        assert columns["END"] == pairs.end and words["END"] == ":"
        # the colours of the last block in the order of the text, its query after them
        texts = [words[name][1:] for name in sorted(("right", "wrong 1", "wrong 2"), key=lambda name: columns[name])]
        assert texts == list(scene.values())
        assert max(columns[name] for name in ("right", "wrong 1", "wrong 2")) < columns["query"] < columns["END"]
        last = llama.tokens(pair.clean[pair.clean.rindex("Q:") :], bos=False)
        assert min(columns.values()) > pairs.end - len(last)
        assert pair.group == f"{len(llama.tokens(pair.clean))} tokens"


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.integers(1, 40))
def test_the_right_and_the_corrupted_place_are_balanced(llama, seed, prompts):
    counts = Counter()
    for pair in colored_objects(llama, prompts=prompts, seed=seed, shots=0).prompts:
        scene, asked, _ = blocks(pair.clean)[-1]
        other = blocks(pair.corrupted)[-1][1]
        counts[list(scene).index(asked), list(scene).index(other)] += 1
    assert len(counts) == min(6, prompts)
    assert max(counts.values()) - min(counts.values()) <= (1 if prompts >= 6 else 0)


def test_the_object_asked_for_takes_as_many_tokens_in_both_prompts(llama):
    """The packaged tokenizer splits three objects; they are asked for, though only against one another."""
    task = colored_objects(llama, prompts=200, shots=0)
    split = task.facts["objects of several tokens"]
    assert split == ["mug", "leash", "bracelet"]
    asked = {(blocks(pair.clean)[-1][1], blocks(pair.corrupted)[-1][1]) for pair in task.prompts}
    assert {thing for pair in asked for thing in pair} >= {"pen", "ball", *split}
    for one, other in asked:
        assert len(llama.tokens(f"the {one}")) == len(llama.tokens(f"the {other}"))


def test_the_seed_decides(llama):
    first, again, other = (colored_objects(llama, prompts=20, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert not {pair.clean for pair in first.prompts} & {pair.clean for pair in other.prompts}


def test_colours_that_are_split_are_left_out(words):
    scene = "Q: On the table desk floor, there is you see I see an a and. What color is the pencil cup pen?\nA: "
    model = words(scene + "Red Orange Yellow Green Blue Purple red orange")
    task = colored_objects(model, prompts=30, shots=1)
    assert task.facts["colours"] == 6 and task.facts["dropped colours"] == ["brown", "black"]
    seen = {colour for pair in task.prompts for scene, _, _ in blocks(pair.clean) for colour in scene.values()}
    assert seen == {"red", "orange", "yellow", "green", "blue", "purple"}
    task.pairs(model)  # which refuses answers of several tokens and prompts of unequal length
    with pytest.raises(UsageError, match="has 2 colours of one token and 6 are needed"):
        colored_objects(model, form="lower")
    with pytest.raises(UsageError, match="has 5 colours of one token and 6 are needed"):
        colored_objects(words(scene + "Red Orange Yellow Green Blue"))
    assert len(colored_objects(words(scene + "Red Orange Yellow"), prompts=6, shots=0)) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": 4}, "shots of colored-objects must be 0 to 3, got 4"),
        ({"shots": -1}, "shots of colored-objects must be 0 to 3, got -1"),
        ({"form": "upper"}, "form of colored-objects must be one of capital, lower, got 'upper'"),
    ],
)
def test_wrong_options_are_refused(llama, options, message):
    with pytest.raises(UsageError, match=message):
        colored_objects(llama, **options)


@pytest.mark.slow
def test_the_packaged_model_guesses(llama):
    """Measured with 200 prompts: best of three 36 to 37 % whatever the shots, which is chance; top-1 0 % and 28 %."""
    without = accuracy(llama, colored_objects(llama, prompts=30, shots=0).pairs(llama))
    with_one = accuracy(llama, colored_objects(llama, prompts=36, shots=1).pairs(llama))
    assert without.top1.value == 0
    assert with_one.top1.low < 0.28 < with_one.top1.high and with_one.top1.low > 0.1
    for found in (without, with_one):
        assert found.choices == 3
        assert found.best.low < 1 / 3 < found.best.high and found.best.low < 0.37 < found.best.high
        assert found.good_over_bad.low < 0.5 < found.good_over_bad.high
