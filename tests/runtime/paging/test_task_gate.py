"""Nobody reads a task's pages any more once its last holder has left, whatever happened meanwhile."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import pytest

from weightpager.runtime.paging.task_gate import TaskGate


class Interruption(BaseException):
    """What some library's signal handler raises."""


@contextmanager
def interrupted_by(error: type[BaseException], every: float, raised: threading.Event) -> Iterator[None]:
    """Raise it again and again in the step inside `TaskGate.release`, and nowhere else: a busy machine is late."""

    def handler(_signal: int, frame: FrameType | None) -> None:
        while frame is not None and frame.f_code not in TaskGate.release.__code__.co_consts:
            frame = None if frame.f_code is handler.__code__ else frame.f_back  # itself it doesn't interrupt
        if frame is not None:
            raised.set()
            raise error

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, every, every)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError, SystemExit, RuntimeError, Interruption])
@pytest.mark.parametrize("every", [0.002, 0.02])
def test_a_signal_handler_that_raises_leaves_no_layer_inside(error: type[BaseException], every: float) -> None:
    for _ in range(5):
        gate, raised, left = TaskGate("animal"), threading.Event(), threading.Event()
        gate.hold()
        gate.enter(0)

        def read(gate: TaskGate = gate, raised: threading.Event = raised, left: threading.Event = left) -> None:
            assert raised.wait(100)
            threading.Event().wait(0.05)
            left.set()
            gate.leave(0)

        reading = threading.Thread(target=read)
        reading.start()
        with pytest.raises(error), interrupted_by(error, every, raised):
            gate.release()
        assert left.is_set()
        assert gate.holders == 0
        reading.join()


def test_who_leaves_and_is_not_the_last_waits_for_nobody() -> None:
    gate = TaskGate("animal")
    gate.hold()
    gate.hold()
    gate.enter(0)
    gate.release()
    assert gate.holders == 1
    gate.leave(0)
    gate.release()
    assert gate.holders == 0
