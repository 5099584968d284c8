from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from probe.analyses.heads.needle_prompts import ask, encode, hide, open_window
from probe.analyses.heads.needles import Needle
from probe.analyses.texts.haystacks import Haystack, language_reference
from probe.errors import ProbeError, UsageError
from probe.loading.embedded import packaged, unpacked
from probe.tokens import chat, tokenize

NUMBER = Needle(
    "The special magic number for Oslo is 48213.", "What is the special magic number for Oslo?", "48213", "numbers"
)
ACTIVITY = Needle(
    "The best thing to do in Lima is to eat a mango.",
    "What is the best thing to do in Lima?",
    "eat a mango",
    "activities",
)


@dataclass
class Reader:
    """The text side of a model: what `needle_prompts` needs of it."""

    tokenizer: Any
    name: str = "reader"
    context: int = 8192

    @property
    def has_chat_template(self):
        return bool(self.tokenizer.chat_template)

    def tokens(self, text, *, bos=None):
        return tokenize(self.tokenizer, text, bos=bos)

    def chat(self, user, *, system=None):
        return chat(self.tokenizer, user, system=system)


@pytest.fixture(scope="module")
def smollm():
    installed = packaged()
    assert installed is not None
    return Reader(AutoTokenizer.from_pretrained(unpacked(installed)))


@pytest.fixture(scope="module")
def trained():
    """Tokenizers of the other families: byte-level with trimmed offsets, and words with ▁ and a BOS token in front."""
    text = [language_reference().text[:40_000], NUMBER.text, ACTIVITY.text]
    bytes_ = Tokenizer(models.BPE())
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    bytes_.train_from_iterator(
        text,
        trainers.BpeTrainer(vocab_size=900, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
    )
    bytes_.post_processor = processors.ByteLevel(trim_offsets=True)
    pieces = Tokenizer(models.BPE(unk_token="<unk>"))
    pieces.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    pieces.decoder = decoders.Metaspace(prepend_scheme="first")
    pieces.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=900, special_tokens=["<unk>", "<s>"], show_progress=False)
    )
    pieces.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", pieces.token_to_id("<s>"))]
    )
    return {
        "trimming": Reader(PreTrainedTokenizerFast(tokenizer_object=bytes_)),
        "pieces": Reader(PreTrainedTokenizerFast(tokenizer_object=pieces, bos_token="<s>", unk_token="<unk>")),
    }


@pytest.fixture(params=["smollm", "trimming", "pieces"])
def reader(request):
    if request.param == "smollm":
        return request.getfixturevalue("smollm")
    return request.getfixturevalue("trained")[request.param]


def placed(reader, needle, *, length, depth, style="plain", start=0):
    window = open_window(reader, language_reference(), start=start, length=length)
    return hide(reader, needle, window, length=length, depth=depth, style=style)


@pytest.mark.parametrize(("needle", "length"), [(NUMBER, 333), (ACTIVITY, 120)], ids=["number", "activity"])
@pytest.mark.parametrize("depth", [0, 35, 90, 100])
def test_length_answer_and_depth_are_exact(reader, needle, length, depth):
    prompt = placed(reader, needle, length=length, depth=depth)
    text, tokens = prompt.tokens.text, prompt.tokens
    assert prompt.length == length
    context = text[: text.index("\nBased on the content")]
    assert len(tokens.span(0, len(context))) == length
    first, last = tokens.offsets[prompt.answer.start][0], tokens.offsets[prompt.answer.stop - 1][1]
    assert needle.answer in text[first:last]
    assert len(text[first:last]) <= len(needle.answer) + 2  # a blank before it, at most one letter that merged
    before, after = context.split(needle.text)
    if depth == 0:
        assert before == ""
    elif depth == 100:
        assert after == ""
    else:
        assert before.rstrip()[-1] in '.!?”")]'
    ahead = len(tokens.span(0, len(before.rstrip()))) if before.strip() else 0
    own = len(tokens.span(len(before), len(before) + len(needle.text)))
    assert prompt.depth_reached == pytest.approx(100 * ahead / (length - own))


def test_no_sentence_end_is_nearer_than_the_one_chosen(smollm):
    window = open_window(smollm, language_reference(), start=0, length=400)
    prompt = hide(smollm, NUMBER, window, length=400, depth=50, style="plain")
    reached = prompt.tokens.text.index(NUMBER.text) - 1
    cut = window.ends[400 - 14 - 1]
    wanted = 0.5 * (400 - 14)

    def position(character: int) -> int:
        return sum(start < character for start in window.starts)

    others = [end for end in window.sentence_ends if end < cut]
    assert reached in others
    assert abs(position(reached) - wanted) == min(abs(position(end) - wanted) for end in others)


@pytest.mark.parametrize(
    ("needle", "words"),
    [
        (NUMBER, [" ", "4", "8", "2", "1", "3"]),
        (ACTIVITY, [" eat", " a", " mango"]),
        (Needle("Blue is the favorite color of Ada.", "What color?", "Blue", "custom"), ["Blue"]),
        (Needle("Was it red? It was red.", "Which?", "red", "custom"), [" red"]),
    ],
    ids=["digits after a blank", "words", "first word of the needle", "the last of two"],
)
def test_the_answer_is_found_by_characters(smollm, needle, words):
    prompt = placed(smollm, needle, length=150, depth=50)
    if needle.answer == "Blue":
        words = [" Blue"]  # after a sentence it is another token than at the start of the needle's own text
    strings = prompt.tokens.strings()
    assert [strings[index] for index in prompt.answer] == words
    after = strings[prompt.answer.stop]
    assert after.startswith("." if needle.answer != "Blue" else " is")


def test_at_depth_zero_a_first_word_has_no_blank(smollm):
    needle = Needle("Blue is the favorite color of Ada.", "What color?", "Blue", "custom")
    prompt = placed(smollm, needle, length=150, depth=0)
    assert [prompt.tokens.strings()[index] for index in prompt.answer] == ["Blue"]


def test_a_needle_of_other_tokens_at_the_beginning_keeps_the_length(smollm):
    needle = Needle("Helsinki is the home of Ada.", "Where does Ada live?", "Helsinki", "custom")
    assert len(smollm.tokens(needle.text)) == len(smollm.tokens(f" {needle.text}")) + 2
    for depth in (0, 50, 100):
        assert placed(smollm, needle, length=150, depth=depth).length == 150


def test_the_chat_prompt_is_the_template_around_the_book(smollm):
    prompt = placed(smollm, NUMBER, length=150, depth=50, style="chat")
    text = prompt.tokens.text
    assert text.startswith("<|im_start|>system\n")
    assert "<|im_start|>user\n<book>" in text
    assert text.endswith(
        "</book>\nBased on the content of the book, Question: What is the special magic number for Oslo?\n"
        "Answer:<|im_end|>\n<|im_start|>assistant\n"
    )
    book = text[text.index("<book>") + 6 : text.index("</book>")]
    assert len(prompt.tokens.span(text.index("<book>") + 6, text.index("</book>"))) == 150
    assert NUMBER.text in book
    assert not prompt.tokens.bos  # the template writes its own beginning


def test_a_plain_prompt_follows_the_tokenizers_bos(trained):
    text, start = ask(trained["pieces"], "Some context.", "Why?", style="plain")
    assert text[start:].startswith("Some context.")
    assert encode(trained["pieces"], text, style="plain").bos


def test_a_model_without_a_template_is_told_the_option(trained):
    with pytest.raises(UsageError, match="no chat template: use --prompt-style plain"):
        ask(trained["trimming"], "context", "question?", style="chat")


def test_a_template_that_rewrites_the_text_is_refused(smollm):
    tokenizer = AutoTokenizer.from_pretrained(smollm.tokenizer.name_or_path)
    tokenizer.chat_template = "{{ messages[0]['content'] | upper }}"
    with pytest.raises(UsageError, match="rewrites the user's text: use --prompt-style plain"):
        ask(Reader(tokenizer), "context", "question?", style="chat")


def test_a_short_haystack_is_one_line(smollm):
    with pytest.raises(ProbeError, match=r"'tiny' has 6 tokens, too few for a length of 50: .*--haystack.*--lengths"):
        open_window(smollm, Haystack("tiny", "One two. Three four."), start=0, length=50)


def test_a_haystack_is_used_to_its_last_token(smollm):
    haystack = Haystack("tiny", "One two. Three four.")
    assert len(open_window(smollm, haystack, start=9, length=6).starts) >= 6


def test_prose_without_full_stops_is_one_line(smollm):
    haystack = Haystack("commas", "one, two, three, " * 60)
    window = open_window(smollm, haystack, start=0, length=100)
    with pytest.raises(ProbeError, match="expected a haystack with full stops"):
        hide(smollm, NUMBER, window, length=100, depth=50, style="plain")
    assert hide(smollm, NUMBER, window, length=100, depth=100, style="plain").depth_reached == 100


def test_a_length_below_the_needles_is_one_line(smollm):
    with pytest.raises(UsageError, match="--lengths 13 leaves no room for a needle of 14 tokens"):
        placed(smollm, NUMBER, length=13, depth=50)


def test_characters_of_several_tokens_do_not_move_the_length(smollm):
    haystack = Haystack("漢", "漢字は難しい。日本語の文章です。" * 30)
    window = open_window(smollm, haystack, start=0, length=200)
    for depth in (20, 60, 100):
        prompt = hide(smollm, NUMBER, window, length=200, depth=depth, style="plain")
        assert abs(prompt.length - 200) <= 3  # a cut inside a character takes the character whole
        assert prompt.tokens.text.count(NUMBER.text) == 1
