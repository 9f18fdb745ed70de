"""Traces: which task ran when. An engine's history, `simulate` and a task file's `transitions:` share one format.

A trace file has a JSON object per line, in the order of time:

    {"task": "spam", "time": 1764113441.25}
    {"task": "topic", "time": 1764199850.5, "resumed": true}
    {"requests": {"spam": 40, "topic": 2}, "switches": 3}

``time`` is in seconds since any start, may be absent, and never decreases. ``resumed`` marks a visit that follows a
gap, such as a restart. The last kind of line is written by engines only: what has been asked for since the line of this
kind before it. A line that a killed process left unfinished is a gap.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from types import MappingProxyType

from weightpager.errors import ConfigError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Visit:
    """A task became the current one.

    Attributes:
        task: its name.
        start: seconds since any start, of an engine those of ``time.monotonic``; the task stayed until the next visit.
            NaN if a trace doesn't say.
        resumed: a gap lies before it, such as a restart: no switch leads here, and the visit before it has no known
            length.
    """

    task: str
    start: float = math.nan
    resumed: bool = False

    def row(self) -> dict[str, object]:
        """As a row of a trace file."""
        row: dict[str, object] = {"task": self.task}
        if not math.isnan(self.start):
            row["time"] = self.start
        return row | ({"resumed": True} if self.resumed else {})


@dataclass(frozen=True)
class Counts:
    """How often each task was asked for, and how many switches there were."""

    requests: Counter[str]
    switches: int

    def row(self) -> dict[str, object]:
        """As a row of a trace file."""
        return {"requests": dict(self.requests), "switches": self.switches}


class UnfinishedLineError(ValueError):
    """A line whose end is missing."""


def encode(row: Visit | Counts) -> bytes:
    """The row's line."""
    return json.dumps(row.row()).encode("ascii") + b"\n"


def parse(line: bytes) -> Visit | Counts:
    """The visit or the counts that a line stands for.

    Raises:
        UnfinishedLineError: it begins as an object does, or is made of zeros as after a power cut, and isn't JSON.
        ValueError: it is something else.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        unfinished = line and line.lstrip(b"\0")[:1] in (b"", b"{")
        raise (UnfinishedLineError if unfinished else ValueError)(f"expected a JSON object, got {line[:80]!r}")
    return _counts(row) if row.keys() == {"requests", "switches"} else _visit(row)


def read_visits(path: Path | str, tasks: Sequence[str] | None = None, *, timed: bool = False) -> list[Visit]:
    """The visits of a trace file, oldest first.

    Args:
        path: the file.
        tasks: the known names; None accepts any.
        timed: whether each visit must say when it began.

    Raises:
        ConfigError: the file can't be read, or a line isn't of this form; names the file and the line.
    """
    visits: list[Visit] = []
    unfinished: list[str] = []
    latest, gap = -math.inf, False
    for number, line in enumerate(_lines(Path(path)), 1):
        try:
            visit = parse(line)
            if isinstance(visit, Counts):
                continue
            _check(visit, tasks, latest, timed=timed)
        except UnfinishedLineError as error:
            unfinished.append(f"{path}:{number}: {error}")
            gap = True
        except ValueError as error:
            raise ConfigError(f"{path}:{number}: {error}") from error
        else:
            visits.append(replace(visit, resumed=visit.resumed or gap))
            latest, gap = latest if math.isnan(visit.start) else visit.start, False
    if unfinished and not visits:
        raise ConfigError(unfinished[0])
    if unfinished:
        _log.warning("%s; %d such lines were taken as gaps", unfinished[0], len(unfinished))
    return visits


def read_trace(path: Path | str, tasks: Sequence[str] | None = None) -> list[str | None]:
    """The task names of a trace file, None for a gap; arguments and errors are those of `read_visits`."""
    return [name for visit in read_visits(path, tasks) for name in ([None] if visit.resumed else []) + [visit.task]]


def read_timed_visits(
    path: Path | str, tasks: Sequence[str], meant: Mapping[str, str] = MappingProxyType({})
) -> tuple[Visit, ...]:
    """The visits of a trace file that says when each began; a task twice in a row is one visit.

    Args:
        path: the file.
        tasks: the known names.
        meant: the name of a task by another that it may have in the file.

    Raises:
        ConfigError: as of `read_visits`; there is no switch.
    """
    read = read_visits(path, tasks, timed=True)
    visits = merged(replace(visit, task=meant.get(visit.task, visit.task)) for visit in read)
    if len(visits) < 2:
        raise ConfigError(f"{path}: expected at least one switch, found {len(visits)} visits")
    return visits


def merged(visits: Iterable[Visit]) -> tuple[Visit, ...]:
    """With one visit in place of several to the same task in a row."""
    return tuple(next(run) for _, run in groupby(visits, lambda visit: visit.task))


def write_trace(path: Path | str, visits: Iterable[Visit]) -> None:
    """Write a trace file."""
    Path(path).write_bytes(b"".join(map(encode, visits)))


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: expected a readable trace file, got {error.strerror or error}") from error


def _check(visit: Visit, tasks: Sequence[str] | None, latest: float, *, timed: bool) -> None:
    if tasks is not None and visit.task not in tasks:
        raise ValueError(f"expected one of {', '.join(tasks)}, got {visit.task[:80]!r}")
    if visit.start < latest:
        raise ValueError(f"expected a time from {latest} up, got {visit.start}")
    if timed and math.isnan(visit.start):
        raise ValueError("expected a time, since how long tasks run matters here; found none")


def _visit(row: dict[str, object]) -> Visit:
    if unknown := sorted(row.keys() - {"task", "time", "resumed"}):
        raise ValueError(f"expected the keys task and time, got {', '.join(map(repr, unknown))[:80]}")
    name, moment, resumed = row.get("task"), row.get("time"), row.get("resumed", False)
    if not isinstance(resumed, bool):
        raise ValueError(f"expected true or false for resumed, got {str(resumed)[:80]}")
    if not isinstance(name, str):
        raise ValueError(f"expected a task's name, got {repr(name)[:80]}")
    return Visit(name, math.nan if moment is None else _seconds(moment), resumed)


def _counts(row: dict[str, object]) -> Counts:
    requests, switches = row["requests"], row["switches"]
    if not isinstance(requests, dict) or not all(map(_is_count, (switches, *requests.values()))):
        raise ValueError(f"expected counts of requests and switches, got {str(row)[:80]}")
    return Counts(Counter(requests), switches)  # type: ignore[arg-type]


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _seconds(moment: object) -> float:
    # Comparing a whole number never overflows, converting one may.
    if isinstance(moment, bool) or not isinstance(moment, int | float) or not -1e300 < moment < 1e300:
        raise ValueError(f"expected a time in seconds, got {str(moment)[:80]}")
    return float(moment)
