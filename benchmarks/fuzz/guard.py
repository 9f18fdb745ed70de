"""Limits around a trial: time, memory, and what the superuser may read."""

from __future__ import annotations

import os
import re
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.fuzz.trial import Stopped

CPU_SECONDS = 2.0
WALL_SECONDS = 8.0
"""For what waits, such as for the other end of a FIFO; other programs on the machine may take most of it."""

ADDRESS_SPACE = 1 << 30
"""Bytes that a child may map beside what it began with."""

PEAK_BYTES = 192 << 20
"""By which a trial may raise the resident set, however small the bundle."""

_NOBODY = 65534


def limit_address_space() -> None:
    """Have larger allocations fail in this process."""
    most = _status("VmSize") + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@contextmanager
def timed() -> Iterator[None]:
    """Raise `Stopped` in what takes longer."""

    def stop(number: int, _: object) -> None:
        what = f"{CPU_SECONDS:g} s of work" if number == signal.SIGPROF else f"{WALL_SECONDS:g} s of waiting"
        raise Stopped(f"more than {what}")

    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, stop)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


class Peak:
    """How far the resident set rises."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _status("VmRSS")

    def rise(self) -> int:
        """Bytes, from the start to the peak."""
        return _status("VmHWM") - self._before


@contextmanager
def unprivileged(wanted: bool) -> Iterator[None]:
    """Without the superuser's right to read everything."""
    if not wanted or os.geteuid() != 0:
        yield
        return
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def _status(name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    assert match is not None, f"Linux states {name}"
    return int(match[1]) * 1024
