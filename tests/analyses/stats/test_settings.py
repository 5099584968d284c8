"""Settings that contradict one another are refused by the option's name."""

import pytest

from probe.analyses.stats.settings import Settings
from probe.errors import UsageError


def test_key_sets_hold_the_first_token_and_the_named_positions():
    settings = Settings(stat=("mass",), positions={"early": "1-3,8", "one": 5})
    assert settings.key_sets() == {"first": (0,), "early": (1, 2, 3, 8), "one": (5,)}


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"positions": {"a": "1"}}, "--positions names keys for --stat mass"),
        ({"stat": ("mass",), "positions": {"a": "3-1"}}, "--positions: expected a=N-N,N, such as a=1-3,8, got a=3-1"),
        ({"stat": ("mass",), "positions": {"first": "1"}}, "'first' is the first token's name"),
        ({"stat": ("mass",), "positions": {f"n{n}": n for n in range(32)}}, "--positions: expected at most 31 names"),
        ({"stat": ("magic",)}, "--stat: expected one of entropy, distance"),
        ({"stat": ()}, "--stat: expected at least one statistic, got none"),
        ({"unit": "letter"}, "--unit: expected one of token, word"),
        ({"max_tokens": 1}, "--max-tokens: expected at least 2, got 1"),
        ({"format": "json"}, "--format: expected one of parquet, csv"),
    ],
)
def test_mistakes(fields, words):
    with pytest.raises(UsageError) as raised:
        Settings(**fields)
    assert words in str(raised.value)


def test_presets_are_settings():
    assert Settings.of("quick").max_texts == 8 and Settings.of("quick").max_tokens == 256
    assert "mass" in Settings.of("report").stat
