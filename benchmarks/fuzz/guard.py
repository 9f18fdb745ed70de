"""Limits around a trial: time, memory, and what the superuser may read."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from benchmarks.fuzz.trial import Stopped
from weightpager.machine.memory import size_field

CPU_SECONDS = 2.0
WALL_SECONDS = 8.0
"""For what waits, such as for the other end of a FIFO."""

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
    start = _idle()

    def stop_work(*_: object) -> None:
        raise Stopped(f"more than {CPU_SECONDS:g} s of work")

    def stop_waiting(*_: object) -> None:
        if (rest := WALL_SECONDS - (_idle() - start)) <= 0:
            raise Stopped(f"more than {WALL_SECONDS:g} s of waiting")
        signal.setitimer(signal.ITIMER_REAL, max(0.1, rest))

    signal.signal(signal.SIGPROF, stop_work)
    signal.signal(signal.SIGALRM, stop_waiting)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _idle() -> float:
    """Seconds in which this thread neither ran nor waited for a processor, which other programs may have."""
    running, queued, _ = Path("/proc/thread-self/schedstat").read_text(encoding="ascii").split()
    return time.monotonic() - (int(running) + int(queued)) / 1e9


_REACH = (
    "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "subprocess.Popen", "os.system", "os.exec",
    "os.posix_spawn", "os.spawn", "pickle.find_class", "webbrowser.open", "ctypes.dlopen",
)  # fmt: skip
"""Audit events of what no bundle may bring about."""

_watching: list[set[str]] = []


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if _watching and event in _REACH:
        _watching[-1].add(f"{event} {str(arguments)[:100]}")


@cache
def _listen() -> None:
    """Once: a hook stays as long as its process."""
    sys.addaudithook(_audit)


@contextmanager
def watched() -> Iterator[set[str]]:
    """What reaches out of this process meanwhile: to other machines, programs, or pickles."""
    _listen()
    found: set[str] = set()
    _watching.append(found)
    try:
        yield found
    finally:
        _watching.remove(found)


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
    found = size_field(Path("/proc/self/status").read_text(encoding="ascii"), name)
    assert found is not None, f"Linux states {name}"
    return found
