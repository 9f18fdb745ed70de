"""Ctrl-C only at moments when it does no harm.

CPython runs signal handlers in the main thread, between almost any two steps of Python code. What they raise, such as
`KeyboardInterrupt`, would leave half of a change of state, or a lock taken. Such changes are made inside
`uninterrupted`; what is held for the length of a ``with`` block is a `bracket`. See decision 79.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from _signal import getsignal, signal  # type: ignore[import-not-found] # that of `signal` is Python code
from _thread import get_ident
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from signal import SIGALRM, SIGINT, SIGTERM
from types import FrameType, TracebackType
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")

_SIGNALS: tuple[int, ...] = (SIGINT, SIGTERM, SIGALRM)
_POLL = 0.02
"""Seconds between two looks for a signal while the main thread waits for others."""


class _Uninterrupted:
    """Signals that come inside, in the main thread, are handled at the end of the outermost block.

    Waiting inside is for `Condition` and `acquire`, which have the handlers run. Other threads run none, and nothing
    happens there.
    """

    def __init__(self) -> None:
        self._main = threading.main_thread().ident
        os.register_at_fork(after_in_child=self._follow)
        self._depth = 0  # of the main thread
        self._came: set[int] = set()  # replaced, never changed: that is no call, behind which a handler might run
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._instead = self._handle  # one object: `signal` gives back what it was given

    @property
    def is_on(self) -> bool:
        """Whether this thread is inside, and handlers would run in it."""
        return self._depth > 0 and get_ident() == self._main

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def inside(*args: P.args, **kwargs: P.kwargs) -> T:
            with self:
                return function(*args, **kwargs)

        return inside

    def __enter__(self) -> None:
        if get_ident() != self._main:
            return
        self._depth += 1
        if self._depth == 1:
            try:
                for number in _SIGNALS:
                    handler = getsignal(number)
                    if callable(handler) and handler is not self._instead:
                        self._handlers[number] = handler
                        signal(number, self._instead)
            except BaseException:  # of a handler that was still the program's
                self._depth = 0
                self.__exit__(None, None, None)
                raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if get_ident() != self._main:
            return
        if self._depth > 1:
            self._depth -= 1
            return
        self._depth = 0
        try:
            for number in _SIGNALS:
                if getsignal(number) is self._instead:
                    signal(number, self._handlers[number])
            if self._came:
                self._call()
        except BaseException:  # of the program's handlers: put all of them back, and call all that are due
            self.__exit__(None, None, None)
            raise

    def lifted(self) -> AbstractContextManager[None]:
        """Inside, handlers run as ever: what is done here takes long, and may fail anyway."""
        return _Lifted(self)

    def check(self) -> None:
        """Have the handlers of what has come run now, inside: they may raise what ends the work."""
        if self._came and self.is_on:
            self._call()

    def _follow(self) -> None:
        """The thread that forked is its process's main thread."""
        if get_ident() != self._main:
            self._main, self._depth = get_ident(), 0

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._came = {*self._came, number}
        if not self._depth:  # just behind the block
            self.__exit__(None, None, None)

    def _call(self) -> None:
        """Call the program's handlers of what came, until one raises."""
        while self._came:
            frame = sys._getframe(1)
            number, *left = self._came
            self._came = {*left}
            self._handlers[number](number, frame)


class _Lifted:
    """No generator: if a handler raises just before its end, it must not end when it is collected."""

    def __init__(self, block: _Uninterrupted) -> None:
        self._block = block
        self._depth = 0

    def __enter__(self) -> None:
        if not self._block.is_on:
            return
        self._depth, self._block._depth = self._block._depth, 1
        try:
            self._block.__exit__(None, None, None)
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._depth:
            self._block.__enter__()
            self._block._depth = self._depth


uninterrupted = _Uninterrupted()
"""``with uninterrupted:``, or ``@uninterrupted`` for a whole function."""


class Condition(threading.Condition):
    """A condition whose lock is held `uninterrupted`. A wait has handlers run; if they raise, the lock is held."""

    _notes = 0

    def __enter__(self) -> bool:
        uninterrupted.__enter__()
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
        uninterrupted.__exit__(kind, error, trace)

    def wait(self, timeout: float | None = None) -> bool:
        if not uninterrupted.is_on:
            return super().wait(timeout)
        before = self._notes
        # What is told just when a slice of the wait ends wakes nobody, but is counted.
        return in_slices(lambda seconds: super(Condition, self).wait(seconds) or self._notes != before, timeout)

    def notify(self, n: int = 1) -> None:
        self._notes += 1
        super().notify(n)


def acquire(lock: threading.Lock | threading.RLock, timeout: float | None) -> bool:
    """Acquire a lock, `uninterrupted`, in so many seconds; None for as long as it takes. Returns whether that was done.

    If a handler raises meanwhile the lock isn't acquired.
    """
    if not uninterrupted.is_on:
        return lock.acquire(timeout=-1 if timeout is None else timeout)
    return in_slices(lambda seconds: lock.acquire(timeout=seconds), timeout)


@contextmanager
def acquired(lock: threading.Lock | threading.RLock) -> Iterator[None]:
    """Have a lock in a block that is `uninterrupted`, or in a `bracket`, as soon as others let it go."""
    acquire(lock, None)
    try:
        yield
    finally:
        lock.release()


def in_slices(wait: Callable[[float], bool], timeout: float | None) -> bool:
    """Wait for something, `uninterrupted`, in short slices, between which handlers run. Returns whether it came.

    Args:
        wait: waits at most so many seconds, and returns whether it came.
        timeout: seconds for all of it; None for as long as it takes.
    """
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        uninterrupted.check()
        left = _POLL if end is None else end - time.monotonic()
        if wait(max(0.0, min(left, _POLL))):
            return True
        if left <= 0:
            return False


def in_process(process: int, close: Callable[[], None]) -> None:
    """Call ``close``, but not in a process that was forked: the parent goes on with threads and files."""
    if os.getpid() == process:
        with uninterrupted:
            close()
