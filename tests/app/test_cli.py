"""The frame of the command line: what it imports, how mistakes end, what goes to which stream."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from probe.app import cli
from probe.app.cli.options import Layers, Numbers, shared
from probe.app.cli.progress import bar, continuing
from probe.app.cli.tables import duration, show, size
from probe.errors import ProbeError, UsageError

COMMAND = [sys.executable, "-m", "probe"]


def outcome(error, monkeypatch, capsys) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command that raises this error."""

    @click.command()
    def fails() -> None:
        click.echo("{}")
        raise error

    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda self, ctx, name: fails)
    status = cli.run(["fails"])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize(
    "error, status",
    [
        (ProbeError("no such model"), 1),
        (UsageError("--layers: llama has layers 0..29, got 99"), 2),
        (click.UsageError("no such option"), 2),
        (click.ClickException("went wrong"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_a_mistake_is_one_line_on_stderr(error, status, monkeypatch, capsys):
    got, out, err = outcome(error, monkeypatch, capsys)
    assert got == status and out == "{}\n"
    assert err.strip().count("\n") == 0 and err.strip().startswith("probe: ")
    assert str(error) in err


def test_a_message_of_several_lines_becomes_one(monkeypatch, capsys):
    assert outcome(ProbeError("a\n  b"), monkeypatch, capsys)[2] == "probe: a b\n"


def test_a_bug_shows_its_traceback(monkeypatch, capsys):
    with pytest.raises(ZeroDivisionError):
        outcome(ZeroDivisionError(), monkeypatch, capsys)


def test_an_interruption_says_how_to_go_on(monkeypatch, capsys):
    @click.command()
    def long() -> None:
        with continuing(Path("runs/heads-llama-0011")):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda self, ctx, name: long)
    assert cli.run(["long"]) == 130
    assert capsys.readouterr().err == "probe: interrupted: repeat the command to continue from runs/heads-llama-0011\n"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nothing"], "No such command 'nothing'"),
        (["models", "--colour"], "No such option '--colour'"),
        (["heads", "--lengths", "300,many"], "'--lengths': expected integers, comma-separated, got '300,many'"),
        (["heads", "--layers", "5-2"], "'--layers': expected layers such as 0-5,9, got '5-2'"),
        (["heads", "--kind", "magic"], "'--kind'"),
        (["heads", "--kind", "sink", "--validate"], "needs --kind retrieval, got --kind sink"),
        (["heads", "--kind", "sink", "--max-tokens", "9"], "--max-tokens needs --kind retrieval"),
        (["heads", "--needles", "no-such-file.jsonl"], "no-such-file.jsonl"),
    ],
)
def test_usage_mistakes_end_before_anything_heavy(arguments, words, capsys):
    assert cli.run(arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err and captured.out == "" and captured.err.count("\n") == 1


def test_a_closed_pipe_is_silent():
    command = f"{sys.executable} -m probe models --json | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_command_shows_the_help(capsys):
    assert cli.run([]) == 2
    assert "Commands:" in capsys.readouterr().err


def test_groups_and_devices_are_described_in_sentences(capsys):
    assert cli.run(["--help"]) == 0
    assert "Change a model's attention and measure what follows: act." in capsys.readouterr().out
    assert cli.run(["stats", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "--device DEVICE Device to run on: cpu, cuda, cuda:1 or mps (default:" in said


def test_version_is_the_distribution_s(capsys):
    from importlib.metadata import PackageNotFoundError, version

    try:
        expected = version("attention-probe")
    except PackageNotFoundError:
        pytest.skip("a bare checkout has no version")
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"probe, version {expected}\n"


def every_command() -> list[tuple[str, ...]]:
    """The words of every command and subcommand."""

    def below(command: click.Command, words: tuple[str, ...]) -> list[tuple[str, ...]]:
        found = [words]
        if isinstance(command, click.Group):
            for name in command.list_commands(click.Context(command)):
                inner = command.get_command(click.Context(command), name)
                assert inner is not None
                found += below(inner, (*words, name))
        return found

    return below(cli.probe, ())


def test_help_of_every_command_imports_nothing_heavy():
    words = every_command()
    assert {("circuit", "edges"), ("intervene", "act"), ("heads",)} <= set(words)
    code = (
        "import sys\nfrom probe.app.cli import run\n"
        f"assert all(run([*words, '--help']) == 0 for words in {words!r})\n"
        "heavy = {'torch', 'pandas', 'plotly', 'transformers', 'numpy', 'rich', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: probe") == len(words) and done.stderr == ""


def test_help_takes_less_than_0_3_seconds():
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*COMMAND, "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(5)) < 0.3  # processor time: other programs on the machine do not count


def test_every_option_is_documented():
    for words in every_command():
        command: click.Command = cli.probe
        for word in words:
            assert isinstance(command, click.Group)
            command = command.get_command(click.Context(command), word)  # type: ignore[assignment]
        assert command.help and command.get_short_help_str(), words
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{words} {parameter.name}"
            # nnsight turns on its debug mode when it sees these
            assert not {"-v", "--verbose"} & set(parameter.opts)


def test_models_lists_the_packaged_model(capsys):
    assert cli.run(["models", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content.keys() == {"settings", "manifest", "findings", "tables", "scores", "figures"}
    entries = {entry["name"]: entry for entry in content["tables"]["models"]}
    assert entries["llama"]["licence"] == "apache-2.0" and 90e6 < entries["llama"]["size"] < 110e6
    assert cli.run(["models"]) == 0
    head, *rows, _ = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "model", "where", "licence", "size"]
    assert any(row.startswith("llama ") and "SmolLM2-135M-Instruct" in row for row in rows)


def test_shared_options_come_in_the_order_named():
    @click.command(params=shared("seed", "model", "json"))
    def command(**typed) -> None:
        click.echo(json.dumps(typed, sort_keys=True))

    assert [option.name for option in command.params] == ["seed", "model", "as_json"]


@pytest.mark.parametrize("text, layers", [("3", (3,)), ("0-5,9", (0, 1, 2, 3, 4, 5, 9)), ("9, 1-2,2", (1, 2, 9))])
def test_layers_read_ranges_with_both_ends(text, layers):
    assert Layers().convert(text, None, None) == layers


@pytest.mark.parametrize("text", ["", "a", "1-", "3-1", "1,,2", "-1"])
def test_odd_layers_are_refused(text):
    with pytest.raises(click.BadParameter, match="expected layers such as 0-5,9"):
        Layers().convert(text, None, None)


def test_numbers_keep_their_kind():
    assert Numbers(int).convert("300,600", None, None) == (300, 600)
    assert Numbers(float).convert("10,12.5", None, None) == (10.0, 12.5)
    with pytest.raises(click.BadParameter):
        Numbers(int).convert("1.5", None, None)


def test_progress_is_silent_off_the_terminal(capsys):
    with bar("needles") as progress:
        progress(1, 2)
    assert capsys.readouterr() == ("", "")


def test_a_title_longer_than_its_table_stays_one_line(capsys):
    show(("a", "b"), [("1", "2")], title="A title that is much longer than two columns")
    assert capsys.readouterr().out.splitlines() == ["A title that is much longer than two columns", "a  b", "1  2"]


@pytest.mark.parametrize(
    "count, words", [(None, "?"), (12, "12 B"), (98_362_432, "98.4 MB"), (17_280_000_000, "17.3 GB"), (1500, "1.5 kB")]
)
def test_sizes(count, words):
    assert size(count) == words


@pytest.mark.parametrize(
    "seconds, words", [(7.6, "8 s"), (59.6, "1 min 0 s"), (130, "2 min 10 s"), (11100, "3 h 5 min")]
)
def test_durations(seconds, words):
    assert duration(seconds) == words
