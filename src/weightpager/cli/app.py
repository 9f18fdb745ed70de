"""The ``weightpager`` command: one verb per module, imported only when it runs."""

from __future__ import annotations

import errno
import os
import signal
import sys
from io import TextIOWrapper

import typer

from weightpager.cli import output
from weightpager.cli.commands import (
    bench_command,
    cache_command,
    compile_command,
    demo_command,
    device_commands,
    doctor_command,
    init_command,
    inspect_command,
    ls_command,
    plan_command,
    simulate_command,
    tidy_commands,
    verify_command,
)
from weightpager.cli.delivery import diff_command, publish_commands, pull_command, rollback_command
from weightpager.cli.interruptions import interruptions
from weightpager.cli.serving import ps_command, serve_command, top_command
from weightpager.errors import ConfigError, UnknownTaskError, WeightpagerError

USAGE, FAILURE, INTERRUPTED = 2, 1, 130

_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a storage that is full."""

app = typer.Typer(
    name="weightpager",
    help="One model, many sparse tasks, one memory budget: switch tasks by loading only the pages that differ.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "WEIGHTPAGER"},
)


@app.callback(invoke_without_command=True)
def _root(
    # People may well have a variable WEIGHTPAGER_VERSION of their own.
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", allow_from_autoenv=False),
) -> None:
    if version:
        import weightpager

        typer.echo(weightpager.__version__)
        raise typer.Exit


for command in (
    init_command.init,
    init_command.schema,
    compile_command.compile_,
    cache_command.cache,
    tidy_commands.repack,
    tidy_commands.gc,
    tidy_commands.upgrade,
    ls_command.ls,
    inspect_command.inspect,
    verify_command.verify,
    plan_command.plan,
    simulate_command.simulate,
    device_commands.run,
    device_commands.eval_,
    device_commands.export,
    doctor_command.doctor,
    demo_command.demo,
    serve_command.serve,
    ps_command.ps,
    top_command.top,
    bench_command.bench,
    pull_command.pull,
    rollback_command.rollback,
    diff_command.diff,
):
    app.command(command.__name__.rstrip("_"))(command)
app.add_typer(publish_commands.app, name="publish")


def main() -> None:
    """The process ``weightpager``: run a command, then end undisturbed by Ctrl-C."""
    if isinstance(sys.stdout, TextIOWrapper):  # as for standard error: a name that it can't show must not end a command
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        run()
    finally:
        # The command has ended. Ctrl-C while libraries tidy up at exit would only print their tracebacks.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def run() -> None:
    """Run a command; errors of ours become one message and an exit code, 2 for usage and 1 for failure."""
    try:
        with interruptions():
            app(prog_name="weightpager")
    except WeightpagerError as error:
        output.errors.print(f"error: {error}", style="red")
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
        output.errors.print(refused, style="red")
        sys.exit(FAILURE)


def _forget_output() -> None:
    """Send the rest of the output nowhere: Python would fail once more when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
