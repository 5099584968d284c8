"""The command `probe`. A subcommand's module is imported when it is called, so that --help stays instant.

The exit status is 0 for a run that completes (with a negative result too), 2 for a user's mistake, 1 for any other
failure and 130 for an interruption. A mistake is reported in one line on stderr; a traceback means a bug in probe.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from probe.analyses import TABLE
from probe.app.cli.frame import command_of
from probe.errors import ProbeError, UsageError

COMMANDS = {
    "bench": "probe.app.cli.bench",
    "models": "probe.app.cli.models",
}
"""Commands that are no analysis -> the module whose `command` each is."""


class LazyGroup(click.Group):
    """A group that makes or imports a command when it is asked for: those of `COMMANDS`, and every analysis."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*COMMANDS, *(name.split(" ")[0] for name in TABLE)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if (found := command_of(cmd_name)) is not None:
            return found
        return importlib.import_module(COMMANDS[cmd_name]).command if cmd_name in COMMANDS else None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="attention-probe", prog_name="probe")
def probe() -> None:
    """Find the attention heads that do things in a transformer, show what they do, and change them to see whether the
    model's behaviour follows."""


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    sys.exit(run(args))


def run(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    try:
        status = probe.main(args=args, prog_name="probe", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context else ""
        return _fail(f"{error.format_message()}{hint}", error.exit_code)
    except UsageError as error:
        return _fail(str(error), 2)
    except ProbeError as error:
        return _fail(str(error), 1)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    except BrokenPipeError:
        sys.stdout = None  # the reader has gone; Python would complain when it flushes at exit
        return 1
    return status if isinstance(status, int) else 0


def _fail(message: str, status: int) -> int:
    click.echo(f"probe: {' '.join(message.split())}", err=True)
    return status
