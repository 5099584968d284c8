"""The whole analysis on a tiny model: values by hand, a run that is killed and resumed, and the command."""

import json
import subprocess
import sys

import pandas as pd
import pytest
import torch

from probe.analyses import stats
from probe.app import cli
from probe.errors import UsageError
from probe.saving.results import Result
from tests.analyses.stats.models import chatty
from tests.analyses.stats.test_statistics import eager_maps

TEXTS = ["w5 w9 w7. W7 w20 w5", "w8 w9. W10 w11 w12 w13. W20", "w30 w31 w32"]


def test_values_are_those_of_the_eager_map_averaged_by_hand():
    model = chatty()
    found = stats.run(model, texts=TEXTS, stat=("entropy", "mass"), unit="sentence")
    by_text = []
    for text, sentences in zip(TEXTS, ([(1, 3), (3, 6)], [(1, 2), (2, 6), (6, 7)], [(1, 3)]), strict=True):
        p = eager_maps(model.tokens(text).ids)
        values = torch.stack([-torch.xlogy(p, p).sum(-1), p[..., 0]])
        by_text.append(torch.stack([values[..., start:end].mean(-1) for start, end in sentences]).mean(0))
    wanted = torch.stack(by_text).mean(0)
    for index, name in enumerate(("entropy", "mass first")):
        torch.testing.assert_close(found.head_scores()[name].values, wanted[index], rtol=1e-4, atol=1e-5)
    assert found.units["queries"].tolist() == [2, 3, 1, 4, 1, 2]


def test_chat_turns_and_thinking():
    chat = [
        {"role": "user", "content": "w5 w6 w7"},
        {"role": "assistant", "content": "<think> w8 w9 </think> w10"},
    ]
    turns = stats.run(chatty(), texts=[chat], unit="turn", stat=("top",))
    assert turns.parts_of_text == ("user", "assistant") and turns.units["queries"].tolist() == [3, 5]
    thinking = stats.run(chatty(), texts=[chat], unit="thinking", stat=("top",))
    assert thinking.parts_of_text == ("thinking", "answer") and thinking.units["queries"].tolist() == [2, 1]
    # w3 user w5 w6 w7 w4 w3 assistant <think> w8 w9 </think> w10 w4: the thinking is tokens 9 and 10
    p = eager_maps(thinking_ids(chat))
    torch.testing.assert_close(
        thinking.by_head["top"]["thinking"].mean, p.amax(-1)[..., 9:11].mean(-1), rtol=1e-4, atol=1e-5
    )


def thinking_ids(chat):
    model = chatty()
    return model.tokens(model.tokenizer.apply_chat_template(chat, tokenize=False)).ids


def test_a_killed_run_that_is_resumed_gives_the_same_result(tmp_path):
    class Killed(BaseException):
        pass

    def kill(done, total):
        if done == 2:
            raise Killed

    whole = stats.run(chatty(), texts=TEXTS, unit="word", out=tmp_path / "whole")
    with pytest.raises(Killed):
        stats.run(chatty(), texts=TEXTS, unit="word", out=tmp_path / "cut", progress=kill)
    content = (tmp_path / "cut" / "units.jsonl").read_bytes()
    assert content.count(b"\n") == 2
    (tmp_path / "cut" / "units.jsonl").write_bytes(content[:-9])  # the kill came while the second unit was written
    steps = []
    again = stats.run(
        chatty(), texts=TEXTS, unit="word", out=tmp_path / "cut", progress=lambda *step: steps.append(step)
    )
    assert steps == [(2, 3), (3, 3)]
    in_memory = stats.run(chatty(), texts=TEXTS, unit="word")
    assert again == whole == in_memory == Result.load(tmp_path / "cut")
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "cut" / "statistics.parquet"), pd.read_parquet(tmp_path / "whole/statistics.parquet")
    )


def test_a_folder_of_other_texts_is_refused_and_another_format_is_not(tmp_path):
    stats.run(chatty(), texts=TEXTS, out=tmp_path)
    with pytest.raises(UsageError, match="was made with other options \\(texts: "):
        stats.run(chatty(), texts=TEXTS[:2], out=tmp_path)
    measured = []
    found = stats.run(chatty(), texts=TEXTS, out=tmp_path, format="csv", progress=lambda *step: measured.append(step))
    assert measured == [] and len(pd.read_csv(tmp_path / "statistics.csv")) == len(found.tidy())


def test_the_command_prints_tables_and_paths(tmp_path, monkeypatch, capsys):
    model = chatty()
    monkeypatch.setattr("probe.load", lambda *name, **options: model)
    monkeypatch.setattr("probe.saving.results.save_pictures", lambda plots, folder: [])  # no browser is needed here
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*TEXTS, TEXTS[0]]), encoding="utf-8")
    arguments = ["stats", "--texts", str(path), "--stat", "top", "--unit", "word", "--out", str(tmp_path / "run")]
    assert cli.run([*arguments, "--dry-run"]) == 0
    assert "3 texts of 16 tokens, 1 repeated and left out: top, averaged over each word" in capsys.readouterr().out
    assert cli.run([*arguments, "--top", "2", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert f"table: {tmp_path / 'run' / 'statistics.parquet'}" in out
    assert ["layer", "head", "top", "texts"] in [line.split() for line in out.splitlines()]
    assert "top: share of a query's attention; mean over the queries of each unit of text (word)" in out
    assert cli.run([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document) == ["settings", "manifest", "findings", "tables", "scores", "figures"]
    assert document["findings"] == [] and len(document["tables"]["top"]) == 8
    assert document["scores"]["top"]["unit"] == "share"
    path.write_text('{"txt": 1}\n')
    assert cli.run(arguments) == 2
    assert capsys.readouterr().err.startswith(f'probe: {path}, line 1: missing "text" and "messages"')


def test_settings_import_nothing_heavy():
    code = (
        "import sys; from probe.analyses import stats; stats.Settings.of('quick')\n"
        "assert not {'torch', 'pandas', 'numpy', 'plotly'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
