"""From documents to prompts: repeated texts, cut texts, and the texts that are refused by name."""

import pytest

from probe.analyses.stats.corpus import document
from probe.analyses.stats.prompts import corpus
from probe.analyses.stats.settings import Settings
from probe.errors import UsageError
from tests.analyses.stats.models import chatty

LONG = " ".join(["w5"] * 200)


def read(*values, **fields):
    documents = [document(f"text {number}", value) for number, value in enumerate(values, start=1)]
    return corpus(chatty(), documents, Settings(**fields))


def test_identical_texts_count_once_under_the_first_name():
    found = read("w5 w6", "w7 w8", "w5 w6")
    assert [text.name for text in found.texts] == ["text 1", "text 2"] and found.repeated == 1 and found.tokens == 4


def test_the_first_texts_are_read():
    assert [text.name for text in read("w5 w6", "w5 w6", "w7 w8", "w9 w9", max_texts=2).texts] == ["text 1", "text 3"]


def test_a_cut_text_is_its_first_tokens():
    text = read("w5 w6 w7. w8 w9", max_tokens=3, unit="word").texts[0]
    assert text.cut and text.tokens.strings() == ["w5", " w6", " w7."] and text.owner.tolist() == [-1, 0, 1]
    assert not read("w5 w6 w7", max_tokens=3).texts[0].cut


def test_turns_end_where_the_text_is_cut():
    chat = [{"role": "user", "content": "w5 w6"}, {"role": "assistant", "content": "w7 w8"}]
    whole = read(chat, unit="turn").texts[0]
    assert [(each.label, each.queries) for each in whole.segments] == [("user", 2), ("assistant", 2)]
    cut = read(chat, unit="turn", max_tokens=8).texts[0]  # w3 user w5 w6 w4 w3 assistant w7
    assert [(each.label, each.queries) for each in cut.segments] == [("user", 2), ("assistant", 1)]
    assert cut.segments[-1].end == len(cut.tokens.text)
    assert len(read(chat, unit="turn", max_tokens=6).texts[0].segments) == 1


@pytest.mark.parametrize(
    "value, fields, words",
    [
        (LONG, {}, "text 2: 200 tokens, and LlamaForCausalLM reads 128; cut texts with --max-tokens 128"),
        ("w5", {}, "text 2: 1 token, expected at least 2"),
        ("w5 w6", {"unit": "turn"}, 'text 2: the text is no chat transcript ("messages"); remove it or choose another'),
        ("w5 w6", {"unit": "thinking"}, "text 2: the text has no thinking between <think> and </think>"),
    ],
)
def test_a_text_that_cannot_be_measured_is_refused_by_name(value, fields, words):
    fine = [{"role": "assistant", "content": "<think> w5 </think> w6"}]
    with pytest.raises(UsageError) as raised:
        read(fine, value, **fields)
    assert str(raised.value).startswith(words)


def test_more_tokens_than_the_model_reads_and_no_text_at_all():
    with pytest.raises(UsageError, match="--max-tokens: LlamaForCausalLM reads 128 tokens, got 129"):
        read("w5 w6", max_tokens=129)
    with pytest.raises(UsageError, match="no texts: give --texts FILE, --prompt TEXT or --prompt-file FILE"):
        read()
