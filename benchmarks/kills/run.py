"""Kill -9 at random moments: the bundle is the old one or the new one, and mending spoils nothing.

python -m benchmarks.kills --moments 200
"""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.kills.trials import SpoiledError, Trial, Workplace

_IMPORTED = [
    "tests.support.models.tiny",
    "weightpager.cli.app",
    "weightpager.compiler.pipeline",
    "weightpager.compiler.repack",
    "weightpager.engine",
]
"""What takes seconds to import, during which there is nothing to spoil: killed processes are forks of one that has."""

_BEYOND = 1.1
"""Moments go this far beyond the time that a command takes, so that its last ones are among them."""

_GLANCE = 2e-4
"""Seconds between looks at whether a command has begun to write."""


@dataclass
class Tally:
    """What has come of a command's moments."""

    passed: int = 0
    ended: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def line(self, name: str) -> str:
        moments = self.passed + len(self.failures)
        found = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.outcomes.items()))
        return f"{name}: {self.passed} of {moments} moments passed ({found}; {self.ended} had ended before the kill)"


@dataclass(frozen=True)
class Pace:
    """Seconds that a command takes, and that it takes from when it begins to write."""

    whole: float
    writing: float


def main(
    moments: Annotated[int, typer.Option(min=1, help="Kills of each command.")] = 200,
    minutes: Annotated[float, typer.Option(help="Stop after so long, whatever is left.")] = 60.0,
) -> None:
    """Kill each command at random moments; half of them while it writes."""
    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory(prefix="weightpager-kills-") as folder:
        tallies = kill_all(Path(folder), moments, end)
    for name, tally in tallies.items():
        typer.echo(tally.line(name))
        for failure in tally.failures:
            typer.echo(f"  {failure}", err=True)
    if any(tally.failures for tally in tallies.values()):
        raise typer.Exit(1)


def kill_all(folder: Path, moments: int, end: float) -> dict[str, Tally]:
    """Take turns among all commands until each has been killed so often, or until ``end``."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    workplace = Workplace(folder)
    finish(_start(context, workplace.write_task_files), "task files")
    finish(_command(context, workplace.compiling("one")), "compile")
    trials = workplace.trials()
    paces = {trial.name: _pace(context, trial) for trial in trials}
    tallies = {trial.name: Tally() for trial in trials}
    for _ in range(moments):
        for trial in trials:
            if time.monotonic() < end:
                _kill_once(context, trial, paces[trial.name], tallies[trial.name])
    for trial in trials:
        _end(context, trial, tallies[trial.name])
    return tallies


def finish(process: ForkServerProcess, name: str) -> None:
    """Wait for a process to end well.

    Raises:
        SpoiledError: it doesn't.
    """
    process.join()
    if process.exitcode != 0:
        raise SpoiledError(f"{name}: exit code {process.exitcode}")


def _pace(context: ForkServerContext, trial: Trial) -> Pace:
    trial.reset()
    process, start = _command(context, trial.arguments), time.monotonic()
    _wait_until_it_writes(process, trial)
    begun = time.monotonic()
    finish(process, trial.name)
    trial.check_end()
    return Pace(time.monotonic() - start, time.monotonic() - begun)


def _kill_once(context: ForkServerContext, trial: Trial, pace: Pace, tally: Tally) -> None:
    trial.reset()
    process = _command(context, trial.arguments)
    if random.random() < 0.5:
        time.sleep(random.uniform(0, _BEYOND * pace.whole))
    else:
        _wait_until_it_writes(process, trial)
        time.sleep(random.uniform(0, _BEYOND * pace.writing))
    tally.ended += not process.is_alive()
    process.kill()
    process.join()
    try:
        tally.outcomes[trial.outcome()] += 1
        tally.passed += 1
    except SpoiledError as error:
        tally.failures.append(str(error))


def _end(context: ForkServerContext, trial: Trial, tally: Tally) -> None:
    """What killed commands have left must not disturb one that isn't killed, and goes with it."""
    trial.reset()
    try:
        finish(_command(context, trial.arguments), trial.name)
        trial.check_end()
    except SpoiledError as error:
        tally.failures.append(f"after all kills: {error}")


def _wait_until_it_writes(process: ForkServerProcess, trial: Trial) -> None:
    while process.is_alive() and not trial.has_begun():
        time.sleep(_GLANCE)


def _command(context: ForkServerContext, arguments: list[str]) -> ForkServerProcess:
    return _start(context, _run, arguments)


def _start(context: ForkServerContext, target: Callable[..., object], *arguments: object) -> ForkServerProcess:
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def _run(arguments: list[str]) -> None:
    import torch

    from weightpager.cli.app import run

    torch.set_num_threads(1)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    sys.argv = ["weightpager", *arguments]
    run()
