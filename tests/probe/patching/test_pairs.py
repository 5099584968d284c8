"""Pairs: padding, columns of roles, parts of a batch, and what is refused, with the packaged model's tokenizer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probe import UsageError
from probe.patching.pairs import Pairs, PromptPair, answer, pairs

SHORT = PromptPair(
    "Mary and John met. John thanked", "Mary and John met. Mary thanked", " Mary", " John",
    choices=(" Mary", " John", " Tom"), roles={"IO": (0, 4), "S2": (19, 23)}, group="met",
)  # fmt: skip
LONG = PromptPair(
    "After the long lunch Sarah and Mark met. Mark thanked", "After the long lunch Sarah and Mark met. Sarah thanked",
    " Sarah", " Mark", choices=(" Sarah", " Mark", " Tom"), roles={"S2": (41, 45), "IO": (21, 26)}, group="lunch",
)  # fmt: skip


def decoded(llama, ids) -> str:
    return llama.tokenizer.decode(ids)


def test_pairs_are_padded_on_the_left_and_keep_their_texts(llama):
    made = pairs(llama, [SHORT, LONG])
    assert made.padding is not None and made.padding[1].all() and not made.padding[0].all()
    assert made.end == made.clean.shape[1] - 1 and len(made) == 2
    for row, prompt in enumerate((SHORT, LONG)):
        kept = made.padding[row]
        assert decoded(llama, made.clean[row, kept]) == prompt.clean
        assert decoded(llama, made.corrupted[row, kept]) == prompt.corrupted
        assert int(kept.int().diff().abs().sum()) == (row == 0)  # one step from padding to tokens, none back
        assert kept[-1]
        assert [decoded(llama, one) for one in (made.good[row], made.bad[row])] == [prompt.good, prompt.bad]
        assert [decoded(llama, each) for each in made.choices[row]] == list(prompt.choices)
    assert made.groups == ("met", "lunch")


def test_roles_are_the_columns_of_their_words(llama):
    """The second prompt names its roles in another order."""
    made = pairs(llama, [SHORT, LONG])
    found = [{name: decoded(llama, made.clean[row, at[row]]) for name, at in made.roles.items()} for row in (0, 1)]
    assert found == [{"IO": "Mary", "S2": " John"}, {"IO": " Sarah", "S2": " Mark"}]


def test_a_bos_token_moves_roles_by_one(llama):
    with_bos, without = pairs(llama, [LONG], bos=True), pairs(llama, [LONG], bos=False)
    assert with_bos.clean.shape[1] == without.clean.shape[1] + 1
    for name, columns in with_bos.roles.items():
        assert (columns == without.roles[name] + 1).all()
    assert with_bos.good.equal(without.good)


def test_a_word_of_several_tokens_has_the_role_at_its_last(llama):
    made = pairs(llama, [PromptPair("The bracelet is", "The necklaces is", " red", " blue", roles={"thing": (4, 12)})])
    tokens = llama.tokens("The bracelet is")
    assert len(tokens.span(4, 12)) > 1
    assert int(made.roles["thing"]) == tokens.span(4, 12)[-1]


def test_without_padding_there_is_no_mask(llama):
    made = pairs(llama, [SHORT, SHORT])
    assert made.padding is None and made.clean[0].equal(made.clean[1])
    assert made.take([1]).padding is None


def test_taking_the_short_prompt_drops_the_padding_and_moves_its_roles(llama):
    both, alone = pairs(llama, [SHORT, LONG]), pairs(llama, [SHORT])
    for rows in ([0], torch.tensor([0]), torch.tensor([True, False]), [True, False]):
        taken = both.take(rows)
        assert taken.clean.equal(alone.clean) and taken.corrupted.equal(alone.corrupted) and taken.padding is None
        assert {name: at.tolist() for name, at in taken.roles.items()} == {
            name: at.tolist() for name, at in alone.roles.items()
        }
        assert taken.groups == ("met",) and taken.good.equal(alone.good) and taken.choices.equal(alone.choices)


def made_up(lengths: list[int]) -> Pairs:
    """Pairs whose ids are row * 100 + the place counted from the first token; the role is the first token."""
    width = max(lengths)
    ids = torch.zeros(len(lengths), width, dtype=torch.int64)
    padding = torch.zeros(len(lengths), width, dtype=torch.bool)
    for row, length in enumerate(lengths):
        ids[row, width - length :] = 100 * (row + 1) + torch.arange(length)
        padding[row, width - length :] = True
    rows = torch.arange(len(lengths))
    return Pairs(
        clean=ids,
        corrupted=-ids,
        padding=None if bool(padding.all()) else padding,
        good=rows,
        bad=rows + 1000,
        roles={"first": padding.int().argmax(1)},
        groups=tuple(map(str, rows.tolist())),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 6), min_size=1, max_size=7), st.integers(1, 4), st.data())
def test_batches_hold_every_pair_once_whole_and_with_no_column_of_padding_alone(lengths, size, data):
    whole = made_up(data.draw(st.permutations(lengths)))
    seen = []
    widths = []
    for rows, part in whole.batches(size):
        assert len(rows) == len(part) <= size
        if part.padding is not None:
            assert part.padding.any(1).all() and part.padding[:, 0].any() and not part.padding.all()
        for place, row in enumerate(rows.tolist()):
            start = int(part.roles["first"][place])
            length = part.clean.shape[1] - start
            expected = 100 * (row + 1) + torch.arange(length)
            assert part.clean[place, start:].equal(expected) and part.corrupted[place, start:].equal(-expected)
            assert length == whole.clean.shape[1] - int(whole.roles["first"][row])
            assert part.groups[place] == str(row) and part.good[place] == row and part.bad[place] == row + 1000
        seen += rows.tolist()
        widths.append(part.clean.shape[1])
    assert sorted(seen) == list(range(len(whole)))
    assert widths == sorted(widths)


def test_the_logit_difference_is_read_at_end():
    made = Pairs(
        clean=torch.zeros(2, 3, dtype=torch.int64), corrupted=torch.zeros(2, 3, dtype=torch.int64), padding=None,
        good=torch.tensor([0, 2]), bad=torch.tensor([1, 0]),
    )  # fmt: skip
    end = torch.tensor([[5.0, 3.0, 0.0], [1.0, 0.0, -4.0]])
    assert made.logit_difference(end).tolist() == [2.0, -5.0]
    logits = torch.full((2, 3, 3), 100.0)
    logits[:, -1] = end
    assert made.logit_difference(logits).tolist() == [2.0, -5.0]


def test_an_answer_is_the_token_that_follows_the_prompt(llama):
    prompt = llama.tokens("The year 17")
    assert decoded(llama, answer(llama, prompt, "3")) == "3"
    with pytest.raises(UsageError, match=r"the answer '32' is not one token of llama after 'The year 17'"):
        answer(llama, prompt, "32")
    with pytest.raises(UsageError, match="is not one token"):
        answer(llama, llama.tokens("The capital"), "s")  # joins the prompt's last token
    with pytest.raises(UsageError, match="is not one token"):
        answer(llama, prompt, "")


def changed(**fields: object) -> PromptPair:
    return PromptPair(**({name: getattr(SHORT, name) for name in SHORT.__dataclass_fields__} | fields))


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "no pair of prompts was given"),
        (
            [changed(corrupted="Mary met. Mary thanked")],
            "must have the same number of tokens, got 7 and 5: 'Mary and John",
        ),
        ([changed(clean="", corrupted="", roles={})], "a prompt is empty: give at least one token"),
        ([changed(good=" Mary Ann", choices=())], "' Mary Ann' is not one token of llama after 'Mary and John met"),
        ([changed(bad=" Mary", choices=())], "good and bad must differ, got ' Mary' for both"),
        ([changed(choices=(" John", " Mary"))], r"choices must begin with the answer in good, ' Mary', got \(' John'"),
        ([SHORT, changed(choices=())], r"every prompt must have the same number of choices, got \[0, 3\]"),
        (
            [SHORT, changed(roles={"IO": (0, 4)})],
            r"every prompt must name the same roles as the first one, \['IO', 'S2'\]",
        ),
        (
            [changed(roles={"IO": (4, 4)})],
            "the role 'IO' of 'Mary and John met. John thanked' has no token: the span 4:4",
        ),
    ],
)
def test_what_does_not_fit_is_refused(llama, prompts, message):
    with pytest.raises(UsageError, match=message):
        pairs(llama, prompts)
