"""Nobody reads a task's pages any more once its last holder has left, whatever happened meanwhile."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from weightpager.errors import TaskNotActiveError
from weightpager.runtime.paging.residency import TaskGate


class Interruption(BaseException):
    """What some library's signal handler raises."""


@contextmanager
def handled_by(error: type[BaseException]) -> Iterator[None]:
    """Have SIGALRM's handler raise this."""

    def handler(*_: object) -> None:
        raise error

    before = signal.signal(signal.SIGALRM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError, SystemExit, RuntimeError, Interruption])
@pytest.mark.parametrize("pause", [0.0, 0.002, 0.02])
def test_a_signal_handler_that_raises_leaves_no_layer_inside(error: type[BaseException], pause: float) -> None:
    for _ in range(5):
        gate, reader, left = TaskGate("animal"), object(), threading.Event()
        gate.hold()
        gate.enter(reader, 0)

        def read(gate: TaskGate = gate, reader: object = reader, left: threading.Event = left) -> None:
            while gate.holders:
                time.sleep(0.001)
            for _ in range(5):
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
                time.sleep(pause)
            left.set()
            gate.leave(reader)

        reading = threading.Thread(target=read)
        with pytest.raises(error), handled_by(error):
            reading.start()
            gate.release()
        assert left.is_set()
        assert gate.holders == 0
        reading.join()


def test_who_leaves_and_is_not_the_last_waits_for_nobody() -> None:
    gate, reader = TaskGate("animal"), object()
    gate.hold()
    gate.hold()
    gate.enter(reader, 0)
    gate.release()
    assert gate.holders == 1
    gate.leave(reader)
    gate.release()
    assert gate.holders == 0


def test_who_may_not_enter_is_not_inside() -> None:
    gate, reader = TaskGate("animal"), object()
    with pytest.raises(TaskNotActiveError):
        try:
            gate.enter(reader, 0)
        finally:
            gate.leave(reader)
    gate.hold()
    gate.release()
