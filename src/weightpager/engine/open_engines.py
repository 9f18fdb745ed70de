"""The engines that this process has open."""

from __future__ import annotations

from typing import Protocol
from weakref import WeakSet


class _Closable(Protocol):
    @property
    def closed(self) -> bool:
        """Whether it has been closed."""


_known: WeakSet[_Closable] = WeakSet()


def add(engine: _Closable) -> None:
    """Count an engine in until it is closed, or nobody has it any more."""
    _known.add(engine)


def any_open() -> bool:
    """Whether there is one."""
    return any(not engine.closed for engine in list(_known))
