from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest

from probe.analyses.texts.haystacks import Haystack, from_files, language_reference
from probe.errors import ProbeError


def test_the_language_reference_is_english_without_code():
    haystack = language_reference()
    words = haystack.text.split()
    assert 14_000 < len(words) < 25_000
    assert not set(haystack.text) & set('0123456789_()<>=[]{}/\\*"\n')
    assert "The value for the built-in variable is determined when the interpreter starts." in haystack.text
    common = sum(word.lower() in {"the", "a", "is", "of", "to", "and", "in", "an"} for word in words)
    assert common / len(words) > 0.2  # code and tables have none of these
    starts = haystack.starts()
    sentences = [haystack.text[start:end].strip() for start, end in pairwise(starts)]
    assert len(set(sentences)) == len(sentences)  # topics repeat one another's sections, the haystack does not
    assert max(map(len, sentences)) < 1500


def test_the_language_reference_is_the_same_in_every_process():
    code = "from probe.analyses.texts.haystacks import language_reference as r; print(r().sha256)"
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert hashes == {language_reference().sha256}


def test_a_window_starts_where_asked_and_wraps_without_repeating():
    haystack = Haystack("abc", "One two. Three four.\n\nFive.")
    assert haystack.starts() == [0, 9, 22]
    assert haystack.window(9, 11) == "Three four."
    assert haystack.window(22, 13) == "Five. One two."  # the blank between them is not counted
    everything = haystack.window(9, 1000)
    assert sorted(everything.split()) == sorted(haystack.text.split())
    assert everything.startswith("Three four.\n\nFive. One two.")


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("He left. She stayed.", 2),
        ("See e.g. Chapter 3. It says so, i.e. Yes.", 2),
        ("Mr. Smith met J. Doe. They spoke.", 2),
        ("Call os.path. join it.", 1),
        ('He said "No." Then he left! Why? Nobody knows.', 4),
        ("第一。第二！第三", 3),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text, sentences):
    assert len(Haystack("text", text).starts()) == sentences


def test_files_stand_one_after_another(tmp_path):
    (tmp_path / "a.txt").write_text("\nErste Zeile.\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("Zweite – mit Strich.", encoding="utf-8")
    haystack = from_files([tmp_path / "a.txt", tmp_path / "b.txt"])
    assert haystack.text == "Erste Zeile.\n\nZweite – mit Strich."
    assert haystack.name == "a.txt, b.txt"


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), (b"\n \n", "the file is empty"), (b"caf\xe9 au lait", "not UTF-8")],
)
def test_a_file_that_is_no_text_is_named(tmp_path, content, message):
    path = tmp_path / "hay.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ProbeError, match=message) as error:
        from_files([path])
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
