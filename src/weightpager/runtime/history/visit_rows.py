"""The lines of a history file: each carries its own checksum, so that damage costs no more than what it hits.

    {"run": 3, "number": 17, "task": "spam", "time": 1764113441.25}	9f3a01bc
    {"requests": {"spam": 40, "topic": 2}, "switches": 3}	0c55d1e2

``run`` counts the programs that wrote to the file, ``number`` the visits of one run. A visit that doesn't follow the
one before it by number and run resumes after a gap: a line between them is lost, or the program had ended. ``time`` is
in seconds since 1970, by a clock that is read once per run and never goes backwards within it. Requests and switches
are those since the line of this kind before. After the tab: CRC-32 of what stands before it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from zlib import crc32

from weightpager.runtime.history.visit import Visit

_BEGINNINGS = b'{"run": ', b'{"requests": '


@dataclass(frozen=True)
class VisitRow:
    """One visit of one run."""

    run: int
    number: int
    task: str
    time: float

    def follows(self, before: VisitRow | None) -> bool:
        """Nothing is missing between the two."""
        return before is not None and (self.run, self.number) == (before.run, before.number + 1)


@dataclass
class History:
    """What a history file says.

    Attributes:
        rows: the visits, oldest first.
        requests: of each task.
        switches: how many there were.
        lost: lines that were damaged.
        foreign: those of them that don't begin as any of these would.
    """

    rows: list[VisitRow] = field(default_factory=list)
    requests: Counter[str] = field(default_factory=Counter)
    switches: int = 0
    lost: int = 0
    foreign: int = 0

    @property
    def is_foreign(self) -> bool:
        """Whether the file was something else: what isn't ours must not be written to."""
        return bool(self.foreign) and not self.rows and not self.requests

    def visits(self) -> list[Visit]:
        """The visits in seconds since 1970; where the clock was set back between two runs, the gap has no length."""
        visits: list[Visit] = []
        shift, before = 0.0, None
        for row in self.rows:
            follows = row.follows(before)
            latest = visits[-1].start if visits else -math.inf
            # Within a run the order of times is kept; a later run starts on its own clock.
            shift = max(shift if follows else 0.0, latest - row.time)
            visits.append(Visit(row.task, row.time + shift, resumed=not follows))
            before = row
        return visits


def encode_visit(row: VisitRow) -> bytes:
    """Its line."""
    return _sealed({"run": row.run, "number": row.number, "task": row.task, "time": round(row.time, 6)})


def encode_counts(requests: Counter[str], switches: int) -> bytes:
    """Their line."""
    return _sealed({"requests": dict(requests), "switches": switches})


def parse_history(lines: Iterable[bytes]) -> History:
    """What can be read of a file's lines; never raises."""
    history = History()
    for line in lines:
        row = _opened(line)
        if (visit := _visit(row)) is not None:
            history.rows.append(visit)
        elif (counts := _counts(row)) is not None:
            history.requests += counts[0]
            history.switches += counts[1]
        elif rest := line.strip(b" \r\n\0"):  # after a power cut a file may end in zeros
            history.lost += 1
            history.foreign += not any(rest.startswith(ours[: len(rest)]) for ours in _BEGINNINGS)
    return history


def _sealed(row: dict[str, object]) -> bytes:
    text = json.dumps(row).encode("ascii")
    return b"%s\t%08x\n" % (text, crc32(text))


def _opened(line: bytes) -> dict[str, object]:
    """The line's object; empty if it is damaged."""
    text, _, seal = line.rstrip(b"\n").rpartition(b"\t")
    if seal != b"%08x" % crc32(text):
        return {}
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def _visit(row: dict[str, object]) -> VisitRow | None:
    run, number, task, time = (row.get(key) for key in ("run", "number", "task", "time"))
    if type(run) is int and type(number) is int and isinstance(task, str) and _finite(time):
        return VisitRow(run, number, task, float(time))  # type: ignore[arg-type]
    return None


def _counts(row: dict[str, object]) -> tuple[Counter[str], int] | None:
    requests, switches = row.get("requests"), row.get("switches")
    if not isinstance(requests, dict) or type(switches) is not int or switches < 0:
        return None
    if not all(type(count) is int and count >= 0 for count in requests.values()):
        return None
    return Counter(requests), switches


def _finite(value: object) -> bool:
    # Comparing a whole number never overflows, converting one may.
    return type(value) in (int, float) and -1e300 < value < 1e300  # type: ignore[operator]
