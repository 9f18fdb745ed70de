"""The ``weightpager`` command: one verb per module, imported only when it runs."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from io import TextIOWrapper
from types import FrameType, ModuleType

import typer

from weightpager.cli import output
from weightpager.cli.command import VERBS, Command
from weightpager.errors import ConfigError, UnknownTaskError, WeightpagerError


@contextmanager
def interruptions() -> Iterator[None]:
    """Raise `KeyboardInterrupt` in place of any error that follows Ctrl-C.

    pydantic's serializer, for example, raises an error of its own when the Python code that it calls is interrupted.
    Nothing changes for a process that ignores Ctrl-C or has its own handler.
    """
    came = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield
    except Exception as error:
        if came:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def settle_streams() -> None:
    """Give closed streams the null device, and have standard output escape what it can't show.

    Cron jobs and daemons may start a command with closed streams. Python has None for these, and the next file that is
    opened would get their numbers, and with them what a library prints.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - open as long as the process is
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdout, TextIOWrapper):  # as for standard error: a name that it can't show must not end a command
        sys.stdout.reconfigure(errors="backslashreplace")


USAGE, FAILURE, INTERRUPTED = 2, 1, 130

_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a storage that is full."""


def application(*verbs: str) -> typer.Typer:
    """The command line with some of the verbs, or with all of them.

    Only their modules are imported: what typer builds for all options of all verbs takes as much memory as a task.
    """
    app = typer.Typer(
        name="weightpager",
        help="One model, many sparse tasks, one memory budget: switch tasks by loading only the pages that differ.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "WEIGHTPAGER"},
    )
    app.callback(invoke_without_command=True)(_root)
    for purpose, places in VERBS.items():
        for verb, place in places.items():
            if not verbs or verb in verbs:
                _add(app, verb, import_module(f"weightpager.cli.commands.{place}"), purpose)
    return app


def _add(to: typer.Typer, verb: str, module: ModuleType, purpose: str) -> None:
    if hasattr(module, "app"):
        for command in module.app.registered_commands:
            command.cls = Command
        to.add_typer(module.app, name=verb, rich_help_panel=purpose)
    else:
        function = getattr(module, verb, None) or getattr(module, f"{verb}_")
        to.command(verb, cls=Command, rich_help_panel=purpose)(function)


def _root(
    # People may well have a variable WEIGHTPAGER_VERSION of their own.
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", allow_from_autoenv=False),
) -> None:
    if version:
        import weightpager

        typer.echo(weightpager.__version__)
        raise typer.Exit


def main() -> None:
    """The process ``weightpager``: run a command, then end undisturbed by Ctrl-C."""
    settle_streams()
    try:
        run()
    finally:
        # The command has ended. Ctrl-C while libraries tidy up at exit would only print their tracebacks.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def run() -> None:
    """Run a command; errors of ours become one message and an exit code, 2 for usage and 1 for failure."""
    try:
        with interruptions():
            known = {verb for places in VERBS.values() for verb in places}
            application(*known.intersection(sys.argv[1:2]))(prog_name="weightpager")
    except WeightpagerError as error:
        output.errors().print(f"error: {error}", style="red")
        sys.exit(USAGE if isinstance(error, ConfigError | UnknownTaskError) else FAILURE)
    except KeyboardInterrupt:
        # Typer itself gives this code for Ctrl-C inside a command; this is for the moments before and after.
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has gone.
        _forget_output()
        sys.exit(FAILURE)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        _forget_output()
        refused = f"error: cannot write {error.filename or 'the output'}: {error.strerror}"
        output.errors().print(refused, style="red")
        sys.exit(FAILURE)


def _forget_output() -> None:
    """Send the rest of the output nowhere: Python would fail once more when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
