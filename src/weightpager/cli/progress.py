"""Progress of long work: a bar for each stage where a person looks on, lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from weightpager.cli import output

Progress = Callable[[str, int, int], None]
"""Told (stage, steps done, steps in all)."""

SECONDS = 60.0
"""Between two lines of one stage."""


@contextmanager
def progress(quiet: bool = False) -> Iterator[Progress]:
    """Show the progress of what runs inside, on standard error."""
    if quiet:
        yield lambda _stage, _done, _total: None
    elif sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=output.errors) as bars:
            yield Bars(bars)
    else:
        yield Lines(output.errors)


class Bars:
    """A bar for each stage."""

    def __init__(self, bars: RichProgress) -> None:
        self._bars = bars
        self._of_stage: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` steps of a stage are over."""
        if stage not in self._of_stage:
            self._of_stage[stage] = self._bars.add_task(stage, total=total)
        self._bars.update(self._of_stage[stage], completed=done, total=total)


@dataclass
class _Stage:
    """When a stage began, with how many steps over; how many are over now; and when that was last said."""

    since: float
    first: int
    done: int
    said: float


class Lines:
    """A line when a stage begins, and once a minute how far it is and how much longer it will take."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._stages: dict[str, _Stage] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` steps of a stage are over."""
        now, known = self._clock(), self._stages.get(stage)
        if known is None or done < known.done:  # the first time, or once more
            self._stages[stage] = _Stage(now, done, done, now)
            self._say(f"{stage} …")
            return
        known.done = done
        if now - known.said >= SECONDS and known.first < done < total:
            known.said = now
            left = (now - known.since) / (done - known.first) * (total - done)
            self._say(f"{stage}: {done} of {total}, {_duration(left)} left")

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min" if minutes else "less than a minute"
    return f"{minutes // 60} h {minutes % 60:02} min"
