"""Tasks from files: what is read, sampled and written again, and errors that name file, line and field."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe import UsageError
from probe.analyses.circuits.tasks.files import from_file, read, write
from probe.analyses.circuits.tasks.ioi import ioi
from probe.patching.pairs import PromptPair

ROW = {
    "clean": "Then, Mary and John went to the store. John gave a drink to",
    "corrupted": "Then, Mary and John went to the store. Mary gave a drink to",
    "good": " Mary",
    "bad": " John",
    "choices": [" Mary", " John", " Tom"],
    "roles": {"IO": "Mary", "S1": ["John", 1], "S2": ["John", 2]},
    "group": "store",
}


@pytest.fixture
def written(tmp_path):
    """A function that writes rows, or lines of text, and returns the path."""

    def writer(*rows: object):
        path = tmp_path / "own.jsonl"
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return writer


def test_a_line_becomes_a_pair(llama, written):
    task = from_file(llama, written(ROW, "", {name: ROW[name] for name in reversed(ROW)}))
    assert (task.name, len(task), task.facts["lines"]) == ("own", 2, 2)
    pair = task.prompts[0]
    assert pair == PromptPair(
        clean=ROW["clean"], corrupted=ROW["corrupted"], good=" Mary", bad=" John", choices=(" Mary", " John", " Tom"),
        roles={"IO": (6, 10), "S1": (15, 19), "S2": (39, 43), "END": (58, 59)}, group="store",
    )  # fmt: skip
    assert task.prompts[1] == pair
    made = task.pairs(llama)
    found = {name: llama.tokenizer.decode(made.clean[0, at[0]]) for name, at in made.roles.items()}
    assert found == {"IO": " Mary", "S1": " John", "S2": " John", "END": " to"}
    assert made.roles["S1"][0] < made.roles["S2"][0]


def test_roles_choices_and_group_may_be_left_out(llama, written):
    short = {name: ROW[name] for name in ("clean", "corrupted", "good", "bad")}
    (pair,) = from_file(llama, written(short)).prompts
    assert pair.choices == () and pair.group == "" and pair.roles == {"END": (58, 59)}


def test_more_lines_than_prompts_are_sampled_by_the_seed(llama, written):
    path = written(*(ROW | {"group": str(number)} for number in range(30)))
    groups = [[pair.group for pair in from_file(llama, path, prompts=10, seed=seed).prompts] for seed in (0, 0, 1)]
    assert groups[0] == groups[1] != groups[2]
    assert len(set(groups[0])) == 10 and groups[0] == sorted(groups[0], key=int)
    assert [pair.group for pair in from_file(llama, path, prompts=40).prompts] == list(map(str, range(30)))


def test_what_is_written_is_read_again(llama, tmp_path):
    task = ioi(llama, prompts=20)
    write(task.prompts, tmp_path / "ioi.jsonl")
    assert from_file(llama, tmp_path / "ioi.jsonl").prompts == task.prompts


TEXT = st.text(alphabet=st.sampled_from('aab \n\u2028é"\\'), min_size=1, max_size=12)


@st.composite
def some_pairs(draw) -> PromptPair:
    clean = draw(TEXT)
    roles = {}
    for name in ("one", "two"):
        start = draw(st.integers(0, len(clean) - 1))
        roles[name] = (start, draw(st.integers(start + 1, len(clean))))
    roles["END"] = (len(clean) - 1, len(clean))
    return PromptPair(clean, draw(TEXT), "x", "y", choices=("x", "z", "y"), roles=roles, group=draw(TEXT))


@settings(deadline=None)
@given(st.lists(some_pairs(), min_size=1, max_size=4))
def test_any_pair_is_written_and_read_again(tmp_path_factory, made):
    """Roles overlap, repeat and hold each other here; pieces are counted with their overlaps."""
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    write(made, path)
    assert [pair for _, pair in read(path)] == made
    assert [number for number, _ in read(path)] == list(range(1, len(made) + 1))


def without(name: str) -> dict[str, object]:
    return {key: value for key, value in ROW.items() if key != name}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", r"expected a JSON object \("),
        ([1], "expected a JSON object with clean, corrupted, good, bad, got list"),
        (
            ROW | {"choice": []},
            '"choice" is no field of a pair, expected clean, corrupted, good, bad, choices, roles, group',
        ),
        (without("bad"), '"bad" must be a text that is not empty, got null'),
        (ROW | {"clean": ""}, '"clean" must be a text that is not empty, got ""'),
        (ROW | {"good": 3}, '"good" must be a text that is not empty, got 3'),
        (ROW | {"group": 3}, '"group" must be a text, got 3'),
        (ROW | {"bad": " Mary"}, '"good" and "bad" must differ, got " Mary" twice'),
        (ROW | {"choices": " Mary"}, '"choices" must be a list of texts, got " Mary"'),
        (ROW | {"choices": [" Mary", 3]}, r'"choices" must be a list of texts, got \[" Mary", 3\]'),
        (ROW | {"choices": [" John", " Mary", "x"]}, '"choices" must be different texts, "good" first and "bad" among'),
        (ROW | {"choices": [" Mary", " Tom", " Ann"]}, '"choices" must be different texts, "good" first and "bad" amo'),
        (ROW | {"choices": [" Mary", " John", " John"]}, '"choices" must be different texts'),
        (ROW | {"choices": [" Mary", " John"]}, '"choices" must have the number of the first pair, 3, got 2'),
        (ROW | {"roles": []}, '"roles" must be an object of names and pieces of "clean", got'),
        (ROW | {"roles": {"END": "to"}}, '"roles": END is the last token and needs no piece, leave it out'),
        (ROW | {"roles": {"S": "John"}}, "\"roles\", S: 'John' occurs 2 times in \"clean\", say which: .\"John\", 1"),
        (ROW | {"roles": {"S": "Tom"}}, "\"roles\", S: expected a piece of \"clean\", got 'Tom', which occurs 0 times"),
        (ROW | {"roles": {"S": ""}}, "\"roles\", S: expected a piece of \"clean\", got '', which occurs 0 times"),
        (ROW | {"roles": {"S": ["John", 3]}}, "got 'John', which occurs 2 times, number 3"),
        (ROW | {"roles": {"S": ["John", -1]}}, "got 'John', which occurs 2 times, number -1"),
        (ROW | {"roles": {"S": ["John", 0]}}, r'"roles", S: expected a text or \[text, occurrence from 1\], got'),
        (ROW | {"roles": {"S": ["John", True]}}, r'"roles", S: expected a text or \[text, occurrence from 1\], got'),
        (ROW | {"roles": {"S": [15, 19]}}, r'expected a text or \[text, occurrence from 1\], got \[15, 19\]'),
        (ROW | {"roles": {"S": None}}, r"expected a text or \[text, occurrence from 1\], got null"),
        (ROW | {"roles": {"IO": "Mary"}}, r"must be those of the first pair, \['IO', 'S1', 'S2'\], got \['IO'\]"),
        (ROW | {"corrupted": "Then"}, "clean and corrupted prompt must have the same number of tokens, got 15 and 1"),
        (ROW | {"bad": " Johnson Jr"}, "the answer ' Johnson Jr' is not one token of llama after"),
    ],
)  # fmt: skip
def test_errors_name_file_line_and_field(llama, written, row, message):
    if isinstance(row, dict) and row.get("bad") == " Johnson Jr":
        row = row | {"choices": [" Mary", " Johnson Jr", " Tom"]}
    path = written(ROW, "", row)
    with pytest.raises(UsageError, match=message) as caught:
        from_file(llama, path)
    assert str(caught.value).startswith(f"{path}, line 3: ") and "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_said(llama, tmp_path):
    with pytest.raises(UsageError, match=r"cannot read the task file .*none.jsonl: No such file"):
        from_file(llama, tmp_path / "none.jsonl")
    with pytest.raises(UsageError, match="cannot read the task file"):
        from_file(llama, tmp_path)
    (tmp_path / "bytes.jsonl").write_bytes(b"{\xff")
    with pytest.raises(UsageError, match=r"the task file .*bytes.jsonl is not UTF-8 text \(byte 1\)"):
        from_file(llama, tmp_path / "bytes.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(UsageError, match=r"the task file .*empty.jsonl is empty: expected one JSON object a line"):
        from_file(llama, tmp_path / "empty.jsonl")
