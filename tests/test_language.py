"""The language of docstrings, help texts, errors and documents: habits that can be searched for do not come back.

A passage is a docstring, a help text, an error message or a paragraph. Code in backticks is left out of it, and so are
code blocks and tables of documents. Each habit is a pattern with what to write instead. What a pattern cannot see
(metaphors, riddles, a verdict before its evidence) is left to the reader.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import click
import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("kernels", "probe", "analyses", "benchmarks", "app")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
ERRORS = ("UsageError", "ProbeError", "ClickException", "BadParameter", "fail")

HABITS = {
    # pattern: what to write instead
    r"\bas (?:many|much|few|long|large|small|often|far)\b(?!.{0,80}\bas\b)": "the same number of ...",
    r"\bso (?:many|much|few)\b(?!.{0,80}\b(?:that|as)\b)": "the number, by its name",
    r"(?<!\bno )(?<!\bas )\bsuch\b(?! (?:as|that)\b)(?!.{0,60}\b(?:as|that)\b)": "the thing itself",
    r"(?<!\w)(?<!your )(?<!its )(?<!their )(?<!our )(?<!'s )(?<!s' )(?<!= )own\b(?! ?[\[-])": "whose it is",
    r"(?<!of its )(?<!on its )(?<!of their )(?<!on their )(?<!of your )(?<!on your )\bown(?=[.,;:)])": "the thing",
    r"\b[Ww]hat (?:was|were|is|are|it|they|we|the \w+)(?: \w+)? found\b": "result, score, head, circuit, estimate",
    r"\bfound nothing\b|\bwas found out\b|\bfinds? out\b": "measure, detect, locate",
    r"\b(?:third|fourth) time\b|\bas before\b|\bthan before\b": "the present state",
    r"\bas (?:it|they) (?:was|were)(?=[.,;:)]|$)": "the present state",
    r"\bno longer\b(?! than)|\bany ?more\b(?! than)|\bused to (?:be|have)\b|\bonce more\b": "the present state",
    r"\bgoes on where\b|\bwhere it stood\b|\bhalf-way\b": "If the run is killed, the same command resumes it.",
    r"(?<![\w.\])])\.\d": "a number in prose that begins with a digit: 0.32, or 32%",
    r"(?:^|[.;] )(?:These|Those|Such|What|Each|Both|Own),": "the thing, by its name",
    r"(?:^|[.?!;] )(?:What|Whether|How|Who|Which)\b[^.?!]*(?:[.!;]|$)": "a whole sentence, or a question",
    r"(?:^|[.;] )(?:Costs|Needs|Killed|Asked|Left to|Kept|Gone)\b": "a sentence with its subject",
    r"\bdoes not mind\b|\bcarr(?:y|ies) the model\b|\bsays? less\b|\bfalls? silent\b": "the measurement",
}
"""Patterns of the habits, and what to write instead."""

ALLOWED: dict[tuple[str, str], str] = {}
"""(place, matched text): the reason why this one stays."""

NOUN_STARTS = re.compile(
    r"(?:The|An?|What|Whether|How|Which|All|Every|Each|One|Where|Who|Some|These|Those|Those|That)\b"
)
"""A function's docstring begins with a verb, so not with one of these."""


class Passage(NamedTuple):
    """A text, and where it stands."""

    place: str
    text: str


@cache
def parsed(folder: str) -> dict[str, ast.Module]:
    """The syntax trees of a folder's files by their path, those behind links left to the folder they link to."""
    paths = [path for path in sorted((ROOT / folder).rglob("*.py")) if "__pycache__" not in path.parts]
    names = [(path, path.relative_to(ROOT).as_posix()) for path in paths]
    linked = tuple(f"probe/{name}/" for name in FOLDERS)
    return {name: ast.parse(path.read_text(encoding="utf-8")) for path, name in names if not name.startswith(linked)}


def docstrings(folder: str) -> Iterator[Passage]:
    """The docstrings of modules, classes and functions, and the strings under constants and fields."""
    for name, tree in parsed(folder).items():
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                yield from paragraphs(f"{name}:{node.lineno}", node.value.value)


def errors(folder: str) -> Iterator[Passage]:
    """The string literals handed to errors; what is filled in stands as {}."""
    for name, tree in parsed(folder).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and called(node) in ERRORS:
                for argument in node.args:
                    text = literal(argument)
                    if text.strip("{} "):
                        yield Passage(f"{name}:{node.lineno}", text)


def called(call: ast.Call) -> str:
    """The last name of what is called."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def literal(node: ast.expr) -> str:
    """The text of a string literal or of what is joined to one; other values are {}."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(literal(value) for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return literal(node.left) + literal(node.right)
    return "{}"


def helps() -> Iterator[Passage]:
    """The help of every command and option, subcommands included."""
    from probe.app.cli import probe as main

    waiting: list[tuple[str, click.Command]] = [("probe", main)]
    while waiting:
        name, command = waiting.pop()
        yield from paragraphs(name, command.help or "")
        yield Passage(name, command.epilog or "")
        for parameter in command.params:
            yield Passage(f"{name} {'/'.join(parameter.opts)}", getattr(parameter, "help", None) or "")
        if isinstance(command, click.Group):
            context = click.Context(command)
            for each in command.list_commands(context):
                found = command.get_command(context, each)
                assert found is not None, each
                waiting.append((f"{name} {each}", found))


def prose(document: str) -> Iterator[Passage]:
    """The paragraphs of a document without headings, code blocks, tables, comments and addresses."""
    text = (ROOT / document).read_text(encoding="utf-8")
    text = re.sub(r"^( *)(```|~~~).*?^\1\2", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"<!--.*?-->|^#.*?$|^\s*\|.*?$|\]\([^)]*\)", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from paragraphs(document, text)


def paragraphs(place: str, text: str) -> Iterator[Passage]:
    """The paragraphs of a text, their lines joined and code in backticks left out; indented tables are left out."""
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", text):
        lines = paragraph.strip("\n").splitlines()
        if len(lines) > 1 and any(re.search(r"\S {2,}\S", line) for line in lines):
            continue
        joined = " ".join(line.strip().lstrip("#-*> ") for line in lines)
        if joined:
            yield Passage(place, re.sub(r"``.*?``|`[^`]*`", "`", joined))


def habits_in(passages: Iterator[Passage]) -> list[str]:
    """One line for each habit: where it stands, what it is, what to write instead."""
    return [
        f"{place}: {match[0]!r} -> {instead}"
        for place, text in passages
        for pattern, instead in HABITS.items()
        for match in re.finditer(pattern, text)
        if (place.partition(":")[0], match[0]) not in ALLOWED
    ]


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings(folder):
    assert not (hits := habits_in(docstrings(folder))), "\n".join(hits)


@pytest.mark.parametrize("folder", FOLDERS)
def test_errors(folder):
    assert not (hits := habits_in(errors(folder))), "\n".join(hits)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents(document):
    assert not (hits := habits_in(prose(document))), "\n".join(hits)


def test_help_texts():
    assert not (hits := habits_in(helps())), "\n".join(hits)


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_docstring_of_a_public_function_begins_with_a_verb(folder):
    hits = []
    for name, tree in parsed(folder).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                told = ast.get_docstring(node) or ""
                if NOUN_STARTS.match(told) or told.startswith(("[", "`")):
                    hits.append(f"{name}:{node.lineno} {node.name}: {told.splitlines()[0]}")
    assert not hits, "\n".join(hits)


@pytest.mark.parametrize(
    "text",
    [
        "force as many queries in each text",
        "the last so many positions",
        "A revision belongs to one such model.",
        "own text and own facts",
        "the checkpoint's own.",
        "What was found in a run.",
        "It is read a third time, as before.",
        "About .32 of the attention goes to it (.5).",
        "These, windowed distance, 4 key sets.",
        "Whether the file begins as GGUF files do.",
        "killed half-way, it goes on where it stood",
        "The head is no longer there.",
        "It runs. Costs one pass.",
    ],
)
def test_a_habit_is_seen(text):
    assert habits_in(iter([Passage("here", text)]))


@pytest.mark.parametrize(
    "text",
    [
        "force the same number of queries in each text",
        "as many queries as keys, as long as it fits",
        "so many that they do not fit; such as this; such a model as that",
        "your own text and facts, on its own, of their own accord",
        "0.32 of the attention, version 4.3, x.5, 1.5",
        "What does a head do? How is it measured? It attends.",
        "a name that means what it says",
    ],
)
def test_a_good_sentence_is_not_a_habit(text):
    assert not habits_in(iter([Passage("here", text)]))


def test_what_is_left_out_and_what_is_not():
    text = "A `such thing` is code.\n\n    left  .5\n    right  .6\n\n1. It is no longer so.\n2. Fine.\n"
    assert len(habits_in(paragraphs("x", text))) == 1
    assert literal(ast.parse("f'{a} has as many' + ' tokens'").body[0].value) == "{} has as many tokens"  # pyright: ignore
    found = {place for place, _ in helps()}
    assert {"probe heads", "probe circuit --model", "probe intervene"} <= found or len(found) > 50
    assert len(list(docstrings("probe"))) > 300 and len(list(errors("probe"))) > 100
