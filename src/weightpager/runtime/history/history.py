"""What a history file tells: a trace, read whatever has become of it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from zlib import crc32

from weightpager.trace_file import Counts, Visit, parse, parse_object, parse_row

_BEGINNINGS = b'{"task": ', b'{"requests": ', b'{"run": '


@dataclass
class History:
    """The visits and counts of a file.

    Attributes:
        visits: oldest first, in seconds since 1970. Times never decrease: where a clock was set back, a gap has no
            length.
        requests: how often each task was asked for.
        switches: number of switches.
        lost: number of lines that were damaged.
        foreign: number of lines that can't have been a history's.
        earlier: whether a line has the form of earlier versions.
    """

    visits: list[Visit] = field(default_factory=list)
    requests: Counter[str] = field(default_factory=Counter)
    switches: int = 0
    lost: int = 0
    foreign: int = 0
    earlier: bool = False

    @property
    def is_foreign(self) -> bool:
        """Whether the file was something else: what isn't ours must not be written to."""
        return bool(self.foreign) and not self.visits and not self.requests

    def lose(self, line: bytes) -> bool:
        """Count a line that can't be read. Returns whether there is one: a file may end in zeros after a power cut."""
        if rest := line.strip(b" \0"):
            self.lost += 1
            self.foreign += not any(rest.startswith(ours[: len(rest)]) for ours in _BEGINNINGS)
        return bool(rest)


def parse_history(content: bytes) -> History:
    """What can be read of a file. A damaged line is a gap. Never raises."""
    history, earlier = History(), _EarlierLines()
    gap, shift = True, 0.0
    for line in content.splitlines():
        try:
            row = earlier.parse(line) if b"\t" in line else parse(line)
        except ValueError:
            gap = history.lose(line) or gap
            continue
        if isinstance(row, Counts):
            history.requests += row.requests
            history.switches += row.switches
        elif math.isnan(row.start):  # somebody's trace, in which only the order matters
            history.foreign += 1
        else:
            resumed, latest = row.resumed or gap, history.visits[-1].start if history.visits else -math.inf
            shift = max(0.0 if resumed else shift, latest - row.start)
            history.visits.append(Visit(row.task, row.start + shift, resumed))
            gap = False
    history.earlier = earlier.found
    return history


class _EarlierLines:
    r"""Lines of versions whose history wasn't a trace, with the numbers of run and visit, a tab and a CRC-32.

    ``{"run": 3, "number": 17, "task": "spam", "time": 1764113441.25}\t9f3a01bc``

    Attributes:
        found: whether there has been one.
    """

    def __init__(self) -> None:
        self.found = False
        self._next = 0, 0

    def parse(self, line: bytes) -> Visit | Counts:
        """As `weightpager.trace_file.parse`; a visit is resumed unless it follows the one before by its numbers."""
        text, _, seal = line.rpartition(b"\t")
        if seal != b"%08x" % crc32(text):
            raise ValueError(f"expected a line with its checksum, got {line[:80]!r}")
        fields = parse_object(text)
        run, number = fields.pop("run", 0), fields.pop("number", 0)
        if type(run) is not int or type(number) is not int:
            raise ValueError(f"expected numbers of run and visit, got {line[:80]!r}")
        row = parse_row(fields)
        if isinstance(row, Visit):
            row = replace(row, resumed=(run, number) != self._next)
            self._next = run, number + 1
        self.found = True
        return row
