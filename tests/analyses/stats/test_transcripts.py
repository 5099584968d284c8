"""Turns of a transcript in the text that a chat template makes of it."""

import pytest

from probe.analyses.stats.corpus import Document
from probe.analyses.stats.transcripts import rendered
from probe.errors import UsageError
from tests.probe.every_door import tiny_tokenizer

THINKING = (  # as templates of thinking models: old thinking is left out, and the last turn's tag is the template's
    "{% for message in messages %}<{{ message['role'] }}>"
    "{% set parts = message['content'].split('</think>') %}"
    "{% if message['role'] == 'assistant' and loop.last %}<think>{{ parts[0].split('<think>')[-1] }}</think>"
    "{% endif %}{{ parts[-1] | trim }}</s>{% endfor %}"
)


def turns(template: str, *messages: tuple[str, str]) -> list[tuple[str, str]]:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    document = Document("a", messages=tuple({"role": role, "content": content} for role, content in messages))
    text, found = rendered(tokenizer, document)
    return [(turn.label, text[turn.start : turn.end]) for turn in found]


def test_a_message_is_found_where_the_template_writes_it_and_not_where_it_occurs_first():
    template = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] | trim }}</s>{% endfor %}"
    messages = (("user", "user"), ("assistant", " s\n"), ("user", "user"), ("assistant", ""))
    assert turns(template, *messages) == [("user", "user"), ("assistant", "s"), ("user", "user"), ("assistant", "")]


def test_thinking_that_the_template_leaves_out_is_not_in_the_turn():
    messages = (("user", "q"), ("assistant", "<think>a</think> b"), ("user", "r"), ("assistant", "<think>c</think> d"))
    found = turns(THINKING, *messages)
    assert found[:3] == [("user", "q"), ("assistant", "b"), ("user", "r")]
    assert found[3] == ("assistant", "c</think>d")


def test_what_the_template_refuses_is_one_line():
    with pytest.raises(UsageError, match=r"a: the model's chat template refuses the messages \(no system\)"):
        turns("{{ raise_exception('no system') }}", ("system", "x"))
    with pytest.raises(UsageError, match="a: this model has no chat template; give texts"):
        rendered(tiny_tokenizer(), Document("a", messages=({"role": "user", "content": "x"},)))
