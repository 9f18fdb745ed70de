"""A model in a process of its own, as boxes run them today: started when it is asked for, killed for room."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from benchmarks.box.requests import Request, answer, opening_bytes
from weightpager.bundle import Bundle
from weightpager.config import EngineConfig
from weightpager.engine import Engine
from weightpager.machine.memory import size_field
from weightpager_lab.contest.rivals.rival import slow_engines

Start = Literal["spawn", "fork"]


@dataclass(frozen=True)
class Told:
    """What a process says when it has done what it was asked: bytes of weights that it has, and that it has read."""

    held: int
    read: int


@contextmanager
def storage(rate: float) -> Iterator[None]:
    """Pages come from a disk of so many bytes a second; 0 for the disk as it is."""
    with slow_engines(rate) if rate else nullcontext():
        yield


def wait_for(count: int, rate: float) -> None:
    """Wait as long as the same disk takes for files that aren't read as pages."""
    if rate:
        time.sleep(count / rate)


class ModelProcess:
    """Runs one bundle's tasks, all of which are in memory before it is ready.

    Args:
        bundle: whose tasks.
        budget: of its engine.
        rate: of the storage, in bytes a second.
        start: a new interpreter, or a copy of this process.
        whole: whether all tasks' pages are loaded at first; otherwise those that are asked for.
    """

    def __init__(self, bundle: Bundle, budget: int, rate: float, start: Start, *, whole: bool) -> None:
        context: Any = get_context(start)
        self._ours, theirs = context.Pipe()
        given = bundle if start == "fork" else bundle.path
        self._process = context.Process(target=_serve, args=(theirs, given, budget, rate, whole), daemon=True)
        self._process.start()
        theirs.close()
        self.told: Told = self._ours.recv()

    def enter(self, request: Request) -> None:
        self._ask(("enter", request))

    def answer(self, request: Request) -> None:
        self._ask(("answer", request))

    @property
    def memory(self) -> int:
        return proportional(self._process.pid)

    def close(self) -> None:
        """Kill it, which is the fastest way to have its memory back."""
        self._process.kill()
        self._process.join()
        self._ours.close()

    def _ask(self, message: tuple[str, Request]) -> None:
        self._ours.send(message)
        self.told = self._ours.recv()


def _serve(connection: Connection, given: Bundle | Path, budget: int, rate: float, whole: bool) -> None:
    bundle = Bundle.open(given) if isinstance(given, Path) else given
    with storage(rate), Engine(bundle, EngineConfig(budget)) as engine:
        opened = opening_bytes(bundle.path)
        wait_for(opened, rate)
        for task in bundle.tasks if whole else ():
            engine.activate(task)
        while True:
            report = engine.report()
            connection.send(Told(report.memory.total, opened + report.bytes_read))
            try:
                verb, request = connection.recv()
            except EOFError:
                return
            if verb == "enter":
                engine.activate(request.task)
            else:
                answer(engine, request.task, request)


def proportional(process: int | str = "self") -> int:
    """Resident bytes of a process; of those that several share, its part."""
    return size_field(Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii"), "Pss") or 0
