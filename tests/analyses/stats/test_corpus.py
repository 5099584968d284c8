"""Reading of texts: each form of input, and one line for each mistake."""

import json

import pytest

from probe.analyses.stats.corpus import Document, document, documents
from probe.analyses.stats.settings import Settings
from probe.errors import UsageError

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def written(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_lines_hold_texts_and_transcripts(tmp_path):
    path = written(tmp_path / "a.jsonl", {"text": "One\u2028still one", "id": 3}, "", {"messages": CHAT})
    one, two = documents(Settings(files=(path,)))
    assert one == Document(f"{path}, line 1", text="One\u2028still one")
    assert two == Document(f"{path}, line 3", messages=tuple(CHAT))


def test_a_folder_is_its_text_files_in_order(tmp_path):
    for name in ("b.txt", "a.md", "c.rst", "d.py"):
        (tmp_path / name).write_text(name)
    written(tmp_path / "aa.jsonl", {"text": "line"})
    assert [each.text for each in documents(Settings(files=(tmp_path,)))] == ["a.md", "line", "b.txt", "c.rst"]


def test_prompts_files_and_given_texts_come_in_order(tmp_path):
    path = tmp_path / "prompt"
    path.write_text("from a file")
    settings = Settings(prompt=("first",), prompt_file=(path,), texts=["given", CHAT])
    found = list(documents(settings))
    assert [each.name for each in found] == ["prompt 1", str(path), "text 1", "text 2"]
    assert [each.text for each in found] == ["first", "from a file", "given", ""] and found[3].messages == tuple(CHAT)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_is_no_text(tmp_path, mark):
    path = tmp_path / "a.txt"
    path.write_bytes(mark + "Größe\r\nzwei".encode())
    assert [each.text for each in documents(Settings(files=(path,)))] == ["Größe\nzwei"]


@pytest.mark.parametrize(
    "line, words",
    [
        ('{"text": "a"', "line 2: not valid JSON (Expecting"),
        ("[1]", "line 2: expected a JSON object, got [1]"),
        ('{"body": "a"}', 'line 2: missing "text" and "messages"; each line needs one of them'),
        ('{"text": "a", "messages": []}', 'line 2: has both "text" and "messages"; each line needs one of them'),
        ('{"text": 3}', 'line 2: "text" must be a string, got 3'),
        ('{"text": " "}', "line 2: the text is empty"),
        ('{"messages": "a"}', 'line 2: "messages" must be a list, got "a"'),
        ('{"messages": []}', "line 2: expected a text or a list of messages that is not empty, got []"),
        ('{"messages": [{"role": "user"}]}', 'line 2, message 1: missing "content"'),
        ('{"messages": [{"content": "a"}]}', 'line 2, message 1: missing "role"'),
        ('{"messages": [{"role": "user", "content": null}]}', 'line 2, message 1: missing "content"'),
    ],
)
def test_a_mistake_in_a_line_names_file_and_line(tmp_path, line, words):
    path = written(tmp_path / "a.jsonl", {"text": "fine"}, line)
    with pytest.raises(UsageError) as raised:
        list(documents(Settings(files=(path,))))
    assert str(raised.value).startswith(f"{path}, {words}") and "\n" not in str(raised.value)


def test_mistakes_of_files_and_folders_name_them(tmp_path):
    empty, code, latin = tmp_path / "empty.jsonl", tmp_path / "a.py", tmp_path / "latin.txt"
    empty.write_text("\n")
    code.write_text("x")
    latin.write_bytes(b"Gr\xf6sse")
    (tmp_path / "folder").mkdir()
    for path, words in (
        (empty, "the file is empty"),
        (code, "expected a .jsonl, .txt, .md, .rst file or a folder"),
        (latin, "not UTF-8 (byte 2)"),
        (tmp_path / "folder", "the folder holds no .jsonl, .txt, .md or .rst file"),
        (tmp_path / "no.txt", "cannot be read (No such file"),
    ):
        with pytest.raises(UsageError) as raised:
            list(documents(Settings(files=(path,))))
        assert str(raised.value).startswith(f"{path}: {words}")


def test_what_is_neither_text_nor_messages_is_refused():
    with pytest.raises(UsageError, match="text 1: expected a text or a list of messages that is not empty, got 3"):
        document("text 1", 3)
    with pytest.raises(UsageError, match="expected a list of texts, got one string"):
        Settings(texts="abc")
