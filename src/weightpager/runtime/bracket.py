"""`bracket` and `Closing`: what a ``with`` block holds, and lets go whatever signal handlers raise."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from types import TracebackType
from typing import Generic, ParamSpec, TypeVar

from weightpager.interrupts import uninterrupted
from weightpager.kernels.choice import NATIVE

if NATIVE:
    from weightpager.kernels import _native

T = TypeVar("T")
P = ParamSpec("P")
C = TypeVar("C", bound="Closing")


def bracket(function: Callable[P, Iterator[T]]) -> Callable[P, AbstractContextManager[T]]:
    """As `contextlib.contextmanager`, for what must be undone.

    What comes before the ``yield`` is `uninterrupted`, and so is what comes after it. What a signal handler raises
    meanwhile is raised in the ``with`` block, instead of it, or behind it.
    """
    make = contextmanager(function)

    @wraps(function)
    def make_bracket(*args: P.args, **kwargs: P.kwargs) -> AbstractContextManager[T]:
        return _Bracket(make(*args, **kwargs))

    return make_bracket


class Closing(ABC):
    """What a ``with`` block closes at its end, also where Ctrl-C comes before `close` has begun."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything; a second call does nothing."""

    def __enter__(self: C) -> C:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        finally:
            self.close()  # does nothing, unless Ctrl-C came before the first had begun


class _Ending:
    """Has `leave` called at the end of a ``with`` block until nothing raises before it has begun.

    A signal that comes just as `__exit__` begins goes before it: only native code, as which the same class is there
    mostly, has no such moment.
    """

    entered = False

    def leave(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """End the block. ``entered`` is False once that has begun."""
        raise NotImplementedError

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        try:
            return self.leave(kind, error, trace)
        finally:
            if self.entered:
                self.leave(kind, error, trace)


class _Bracket(_native.Ending if NATIVE else _Ending, Generic[T]):  # type: ignore[misc] # the same to mypy
    def __init__(self, block: AbstractContextManager[T]) -> None:
        super().__init__()
        self._block = block
        self.entered = False

    def __enter__(self) -> T:
        try:
            with uninterrupted:
                value = self._block.__enter__()
                self.entered = True
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return value

    def leave(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        with uninterrupted:
            if not self.entered:
                return None
            self.entered = False
            return self._block.__exit__(kind, error, trace)
