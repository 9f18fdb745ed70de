"""Progress of long work: a bar for each stage in a terminal, lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightpager.cli import output
from weightpager.config import format_duration
from weightpager.progress import Progress, silent

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

SECONDS = 60.0
"""Seconds between two lines of one stage."""

FIRST = 5
"""Seconds after which the time left of the whole is shown; the first steps alone are no measure of it."""


@contextmanager
def progress(quiet: bool = False, whole: str | None = None) -> Iterator[Progress]:
    """Show the progress of the block on standard error.

    ``whole`` is the name of the stage that all others are part of, whose steps are seconds; None if there is none.
    """
    if quiet:
        yield silent
    elif sys.stderr.isatty():
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[steps]}", style="progress.download"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", style="progress.remaining"),
        )
        with RichProgress(*columns, console=output.errors()) as bars:
            yield Bars(bars, whole)
    else:
        yield Lines(output.errors(), whole=whole)


class Bars:
    """A bar for each stage; that of the whole comes first."""

    def __init__(self, bars: RichProgress, whole: str | None = None) -> None:
        self._bars = bars
        self._whole = whole
        self._paces: dict[str, _Stage] = {}
        self._of_stage: dict[str, TaskID] = {}
        if whole is not None:
            self._begin(whole, 1)

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self._of_stage:
            self._begin(stage, total)
        left = total - done if stage == self._whole else self._left(stage, done, total)
        self._bars.update(
            self._of_stage[stage],
            completed=done,
            total=total,
            steps="" if stage == self._whole else f"{done}/{total}",
            left="" if left is None or done >= total else f"{format_duration(left)} left",
        )

    def _begin(self, stage: str, total: int) -> None:
        self._of_stage[stage] = self._bars.add_task(stage, total=total, steps="", left="")

    def _left(self, stage: str, done: int, total: int) -> float | None:
        now = time.monotonic()
        known = self._paces.setdefault(stage, _Stage(now, done, done, now))
        return known.left(now, done, total)


@dataclass
class _Stage:
    """A stage's pace: when it was first heard of, the steps over then and now, and when a line last said so."""

    since: float
    first: int
    done: int
    said: float

    def left(self, now: float, done: int, total: int) -> float | None:
        """Seconds that it will still take at its pace so far; None before its first step."""
        return (now - self.since) / (done - self.first) * (total - done) if done > self.first else None


class Lines:
    """A line when a stage begins, then one a minute: how far it is, and the time left of it and of the whole.

    Where the whole takes longer than was said last, it is said anew.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic, whole: str | None = None) -> None:
        self._console = console
        self._clock = clock
        self._whole = whole
        self._all_left: int | None = None
        self._due = 0.0  # when the whole ends, by what was said last
        self._stages: dict[str, _Stage] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage == self._whole:
            self._hear_of_whole(done, total)
            return
        now, known = self._clock(), self._stages.get(stage)
        if known is None or done < known.done:  # it begins, or begins again
            self._stages[stage] = _Stage(now, done, done, now)
            self._say(f"{stage} …")
            return
        known.done = done
        left = known.left(now, done, total)
        if now - known.said >= SECONDS and left is not None and done < total:
            known.said = now
            behind = "" if self._all_left is None else f"; {self._of_whole(self._all_left)}"
            self._say(f"{stage}: {done} of {total}, {format_duration(left)} left{behind}")

    def _hear_of_whole(self, done: int, total: int) -> None:
        """Print the time left of the whole as soon as it means something; later it is printed with the stages.

        It is printed by itself once more where it is exceeded.
        """
        if done < FIRST:
            return
        first, self._all_left = self._all_left is None, total - done
        if first or self._clock() >= self._due:
            self._say(self._of_whole(self._all_left))

    def _of_whole(self, left: int) -> str:
        """The time left of the whole in words, which is what it will be held to."""
        self._due = self._clock() + max(SECONDS, left)
        return f"{self._whole}: {format_duration(left)} left"

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False)
