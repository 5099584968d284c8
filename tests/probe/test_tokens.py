from __future__ import annotations

import hashlib
import struct

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from probe.errors import ProbeError, UsageError
from probe.loading.embedded import packaged, unpacked
from probe.tokens import Tokens, chat, tokenize

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


@pytest.fixture(scope="module")
def smollm():
    """The embedded model's tokenizer, without the model."""
    installed = packaged()
    assert installed is not None
    return AutoTokenizer.from_pretrained(unpacked(installed))


@pytest.fixture(scope="module")
def fallback():
    """A SentencePiece-like tokenizer: blanks as ▁, bytes of unknown characters, <s> in front, </s> behind."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    merges = [("▁", "a"), ("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("▁", "hello")]
    words = [*(f"<0x{byte:02X}>" for byte in range(256)), *"▁aehlo", "▁a", "he", "ll", "hell", "hello", "▁hello"]
    vocabulary |= {word: index for index, word in enumerate(words, start=3)}
    backend = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(["<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def trimming():
    """A byte-level tokenizer that composes characters and leaves blanks out of its offsets, as Qwen's and Llama 3's."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(["the hello  the hello\n  the x\n  y "] * 3, trainer)
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def decoded(tokenizer, tokens: Tokens, span: range) -> str:
    ids = tokens.ids[span.start : span.stop].tolist()
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


# --- known answers


def test_known_tokens_of_a_sentence(smollm):
    tokens = tokenize(smollm, "The number is 12345.")
    assert tokens.strings() == ["The", " number", " is", " ", "1", "2", "3", "4", "5", "."]
    assert tokens.offsets == (
        (0, 3), (3, 10), (10, 13), (13, 14), (14, 15), (15, 16), (16, 17), (17, 18), (18, 19), (19, 20),
    )  # fmt: skip
    assert tokens.ids.dtype == torch.int64 and tokens.ids.tolist() == smollm("The number is 12345.").input_ids
    assert len(tokens) == 10 and not tokens.bos


@pytest.mark.parametrize(
    ("text", "substring", "expected"),
    [
        ("The number is 12345.", "12345", range(4, 9)),
        ("The number is 12345.", " 12345", range(3, 9)),
        ("The number is 12345.", "The", range(0, 1)),
        ("The number is 12345.", "umbe", range(1, 2)),
        ("a\nnumber", "number", range(2, 3)),  # another id than after a blank
        ("h\N{GRINNING FACE} x", "\N{GRINNING FACE}", range(1, 4)),  # one character in three tokens
    ],
)
def test_find_covers_the_substring(smollm, text, substring, expected):
    tokens = tokenize(smollm, text)
    assert tokens.find(substring) == expected, tokens.strings()
    assert substring in decoded(smollm, tokens, expected)


def test_find_takes_the_first_occurrence_from_start(smollm):
    tokens = tokenize(smollm, "one two one two")
    assert tokens.find("one") == range(0, 1)
    assert tokens.find("one", start=1) == range(2, 3)


def test_find_of_what_is_not_there(smollm):
    tokens = tokenize(smollm, "one two")
    with pytest.raises(ProbeError, match="'three'"):
        tokens.find("three")
    with pytest.raises(ProbeError, match="from character 1"):
        tokens.find("one", start=1)
    with pytest.raises(UsageError, match="empty"):
        tokens.find("")


@pytest.mark.parametrize("bounds", [(0, 0), (3, 2), (-1, 2), (0, 8)])
def test_span_refuses_characters_that_are_not_there(smollm, bounds):
    with pytest.raises(UsageError, match="lie within the 7 characters"):
        tokenize(smollm, "one two").span(*bounds)


def test_span_without_a_token():
    tokens = Tokens("ab", torch.tensor([5]), ((0, 1),))
    with pytest.raises(ProbeError, match="1:2"):
        tokens.span(1, 2)


def test_hash_is_of_the_ids(smollm):
    tokens = tokenize(smollm, "one two")
    assert tokens.hash == hashlib.sha256(struct.pack("<2q", *tokens.ids.tolist())).hexdigest()[:16]
    assert tokens.hash != tokenize(smollm, "two one").hash


# --- what is put in front


def test_the_default_follows_the_tokenizer(smollm, fallback):
    assert not tokenize(smollm, "hello").bos
    tokens = tokenize(fallback, "a hello")
    assert tokens.bos and tokens.ids.tolist() == fallback("a hello").input_ids[:-1]  # </s> is left out
    assert tokens.strings() == ["<s>", "a", " hello"] and tokens.offsets[0] == (0, 0)
    assert tokens.find("hello") == range(2, 3)


def test_bos_can_be_forced_and_forbidden(smollm, fallback):
    with_bos = tokenize(smollm, "hello", bos=True)
    assert with_bos.bos and with_bos.ids.tolist() == [1, *smollm("hello").input_ids]
    assert with_bos.strings()[0] == "<|im_start|>" and with_bos.find("hello").start == 1
    without = tokenize(fallback, "hello", bos=False)
    assert not without.bos and 1 not in without.ids.tolist()


@pytest.mark.parametrize("bos", [None, True])
def test_a_text_that_begins_with_bos_gets_no_second(fallback, bos):
    tokens = tokenize(fallback, "<s>a hello", bos=bos)
    assert tokens.ids.tolist() == tokenize(fallback, "a hello", bos=True).ids.tolist()
    assert tokens.offsets[0] == (0, 3) and not tokens.bos


def test_an_empty_text(smollm, fallback):
    assert len(tokenize(smollm, "")) == 0
    assert tokenize(fallback, "").ids.tolist() == [1]


def test_bos_where_there_is_none(trimming):
    with pytest.raises(UsageError, match="bos=False"):
        tokenize(trimming, "x", bos=True)


def test_names_of_special_tokens_in_the_text(smollm):
    text = "<|im_start|>x<|im_end|>"
    assert tokenize(smollm, text).ids.tolist() == [1, *smollm("x").input_ids, 2]
    plain = tokenize(smollm, text, special=False).ids.tolist()
    assert 1 not in plain and 2 not in plain and smollm.decode(plain) == text
    assert tokenize(smollm, text).ids.tolist()[0] == 1  # asking for plain text leaves nothing behind


def test_a_tokenizer_without_offsets_is_refused():
    with pytest.raises(ProbeError, match="ByT5Tokenizer is a slow tokenizer"):
        tokenize(ByT5Tokenizer(), "x")


# --- offsets that tokenizers leave open


def test_blanks_left_out_of_offsets_are_given_back(trimming):
    raw = trimming("  the hello", return_offsets_mapping=True)["offset_mapping"]
    assert (2, 5) in raw  # the blank before "the" belongs to no token
    tokens = tokenize(trimming, "  the hello")
    assert tokens.strings() == [" ", " the", " hello"]
    assert "".join(tokenize(trimming, "the x\n  y ").strings()) == "the x\n  y "


def test_a_blank_at_the_end_of_a_token_stays_with_it(trimming):
    text = "x\n  y"
    tokens = tokenize(trimming, text)
    names = trimming.convert_ids_to_tokens(tokens.ids.tolist())
    assert "ĊĠ" in names  # else this text shows nothing
    assert tokens.strings()[names.index("ĊĠ")] == "\n "


def test_a_combining_mark_goes_to_its_letter(trimming):
    text = "e\u0301 x"
    tokens = tokenize(trimming, text)
    assert tokens.offsets[:3] == ((0, 2), (0, 2), (2, 4))
    assert tokens.span(1, 2) == range(0, 2)


# --- properties

# The bytes that SmolLM2's vocabulary has no token for: control characters, and two that begin private planes' letters.
UNKNOWN = {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xF1, 0xF2}
relaxed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
texts = st.text(min_size=1, max_size=40) | st.text("a hello\n\t.12½漢\N{GRINNING FACE}é", min_size=1, max_size=40)


@relaxed
@given(text=texts, data=st.data())
@pytest.mark.parametrize("name", ["smollm", "fallback", "trimming"])
def test_every_substring_is_found_where_it_decodes(request, name, text, data):
    tokenizer = request.getfixturevalue(name)
    if name == "trimming":
        text = tokenizer.backend_tokenizer.normalizer.normalize_str(text)  # else what decodes is another spelling
    assume(name != "smollm" or not UNKNOWN & set(text.encode()))
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    tokens = tokenize(tokenizer, text, bos=False, special=False)
    span = tokens.span(start, end)
    assert text[start:end] in decoded(tokenizer, tokens, span)
    for index in (span.start, span.stop - 1):  # and no token more than it takes
        assert set(range(*tokens.offsets[index])) & set(range(start, end))
    assert tokens.find(text[start:end], start=start) == span


@relaxed
@given(text=texts)
@pytest.mark.parametrize("name", ["smollm", "fallback", "trimming"])
def test_offsets_are_in_order_and_cover_the_text(request, name, text):
    assume(name != "smollm" or not UNKNOWN & set(text.encode()))
    tokens = tokenize(request.getfixturevalue(name), text, bos=False, special=False)
    assert {char for start, end in tokens.offsets for char in range(start, end)} == set(range(len(text)))
    assert list(tokens.offsets) == sorted(tokens.offsets)


@relaxed
@given(text=texts)
def test_the_embedded_tokenizer_returns_the_text(smollm, text):
    assume(not UNKNOWN & set(text.encode()))
    assert smollm.decode(tokenize(smollm, text, special=False).ids, clean_up_tokenization_spaces=False) == text


def test_a_character_without_any_token_counts_to_the_token_before(smollm):
    tokens = tokenize(smollm, "a\x04b")
    assert smollm.convert_ids_to_tokens(tokens.ids.tolist()) == ["a", "b"] and tokens.offsets == ((0, 2), (2, 3))


# --- chat


def test_chat_is_the_template_with_its_default_system_message(smollm):
    assert chat(smollm, "Hi") == (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat(smollm, "Hi", system="Be brief") == (
        "<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("bos", [None, True, False])
def test_chat_text_is_encoded_once(smollm, bos):
    tokens = tokenize(smollm, chat(smollm, "Hi"), bos=bos)
    ids = tokens.ids.tolist()
    assert ids[:2] != [1, 1] and ids.count(1) == 3 and ids.count(2) == 2 and not tokens.bos
    template = smollm.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    assert ids == template["input_ids"]


def test_chat_without_a_template(fallback):
    with pytest.raises(ProbeError, match="no chat template"):
        chat(fallback, "Hi")


def test_chat_with_a_template_that_takes_no_system_message(fallback):
    fallback.chat_template = "{% if messages[1:] %}{{ raise_exception('no system role') }}{% endif %}x"
    try:
        assert chat(fallback, "Hi") == "x"
        with pytest.raises(ProbeError, match="no system role"):
            chat(fallback, "Hi", system="s")
    finally:
        fallback.chat_template = None
