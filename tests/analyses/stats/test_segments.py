"""Units of text by hand: where they stand, and which tokens belong to each."""

import pytest
import torch

from probe.analyses.stats.segments import Span, segmented, spans
from probe.tokens import Tokens


def tokens(*pieces: str, bos: bool = False) -> Tokens:
    """Return Tokens that cover these pieces of text, after a BOS token if asked."""
    ends = [sum(map(len, pieces[: number + 1])) for number in range(len(pieces))]
    offsets = [(end - len(piece), end) for piece, end in zip(pieces, ends, strict=True)]
    offsets = [(0, 0)] * bos + offsets
    return Tokens(text="".join(pieces), ids=torch.arange(len(offsets)), offsets=tuple(offsets), bos=bos)


def strings(text: str, unit: str, turns=()) -> list[str]:
    return [text[span.start : span.end] for span in spans(text, turns, unit)]


def test_words_are_runs_without_blanks():
    assert strings(" It's  (a)\n test.", "word") == ["It's", "(a)", "test."]


@pytest.mark.parametrize(
    "text, sentences",
    [
        ("One. Two!  Three?", ["One.", "Two!", "Three?"]),
        ('He said "No." Then (he left.) And so on', ['He said "No."', "Then (he left.)", "And so on"]),
        ("About 3.5 m, e.g. here. 4 more.", ["About 3.5 m, e.g. here.", "4 more."]),
        ("A title\n\nThen text\nthat goes on.\n", ["A title", "Then text\nthat goes on."]),
        ("Wait... what? Yes", ["Wait... what?", "Yes"]),
        ("是的。不是！", ["是的。", "不是！"]),
        (" \n\n \n", []),
    ],
)
def test_sentences(text, sentences):
    assert strings(text, "sentence") == sentences


@pytest.mark.parametrize(
    "text, parts",
    [
        ("Q <think>a b</think> c", [("thinking", "a b"), ("answer", " c")]),
        ("a b</think> c", [("thinking", "a b"), ("answer", " c")]),
        ("<think>a b", [("thinking", "a b")]),
        ("[THINK]a[/THINK]b", [("thinking", "a"), ("answer", "b")]),
        (
            "<think>a</think>b<think>c</think>d",
            [("thinking", "a"), ("answer", "b"), ("thinking", "c"), ("answer", "d")],
        ),
        ("none", []),
    ],
)
def test_thinking_and_answer_of_a_text(text, parts):
    assert [(span.label, text[span.start : span.end]) for span in spans(text, (), "thinking")] == parts


def test_thinking_is_of_the_assistant_alone_and_may_open_in_the_template():
    text = "U:<think>no</think> A:<think>x</think>y U:z A:p</think>q"
    turns = [
        Span("user", text.index("<think>no"), text.index(" A:<")),
        Span("assistant", text.index("x</think>y"), text.index(" U:z")),  # the template wrote <think>
        Span("user", text.index("z A"), text.index(" A:p")),
        Span("assistant", text.index("p</think>"), len(text)),  # <think> is nowhere
    ]
    assert [(span.label, text[span.start : span.end]) for span in spans(text, turns, "thinking")] == [
        ("thinking", "x"),
        ("answer", "y"),
        ("thinking", "p"),
        ("answer", "q"),
    ]


def test_a_token_belongs_to_the_word_of_its_first_character_that_is_not_blank():
    read = tokens("The", " small", "est", " ", " cat", ".", "\n", "\nIt")
    segments, owner = segmented(read, (), "word")
    assert [(each.number, read.text[each.start : each.end], each.queries) for each in segments] == [
        (1, "smallest", 2),
        (2, "cat.", 2),
        (3, "It", 1),
    ]  # the first word has the first token alone, which never counts
    assert owner.tolist() == [-1, 0, 0, -1, 1, 1, -1, 2]


def test_blanks_between_sentences_belong_to_none_and_within_one_to_it():
    read = tokens("One", " two", "\n", "three.", " ", " Four")
    assert segmented(read, (), "sentence")[1].tolist() == [-1, 0, 0, 0, -1, 1]


def test_bos_is_no_token_of_the_text():
    read = tokens("One", " two", bos=True)
    segments, owner = segmented(read, (), "token")
    assert [(each.number, each.queries) for each in segments] == [(1, 1), (2, 1)] and owner.tolist() == [-1, 0, 1]
    assert [each.queries for each in segmented(read, (), "word")[0]] == [1, 1]


def test_a_character_of_several_tokens_gives_them_all_to_its_word():
    read = Tokens(text="a 日本", ids=torch.arange(5), offsets=((0, 1), (1, 3), (2, 3), (2, 3), (3, 4)))
    assert segmented(read, (), "word")[1].tolist() == [-1, 0, 0, 0, 0]


def test_turns_leave_the_marks_of_the_template_out():
    read = tokens("<u>", "Hi", " you", "</u>", "<a>", "Yes", "</a>")
    turns = (Span("user", 3, 9), Span("assistant", 16, 19))
    segments, owner = segmented(read, turns, "turn")
    assert [(each.number, each.label, each.queries) for each in segments] == [(0, "user", 2), (1, "assistant", 1)]
    assert owner.tolist() == [-1, 0, 0, -1, -1, 1, -1]
