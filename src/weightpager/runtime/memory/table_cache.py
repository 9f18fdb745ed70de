"""Which tasks' block tables are expanded: those in use, and as many others as there is room for."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from typing import Protocol

from weightpager.runtime.bracket import bracket


class Expandable(Protocol):
    """A task's block tables in memory that can be given back.

    Attributes:
        nbytes: bytes of memory that they take while they are expanded.
    """

    nbytes: int

    def expand(self) -> None:
        """Take memory and write the tables. Doesn't fail."""

    def give_back(self) -> None:
        """Give the memory back. Nobody reads it."""


class TableCache:
    """An LRU cache of expanded block tables. Those of tasks in use stay; of others the least recently used go first.

    Safe to use from several threads. Expanding takes a fraction of a millisecond and needs no storage: it is done under
    the lock.

    Attributes:
        size: bytes that they may take.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._lock = threading.Lock()
        self._users: Counter[Expandable] = Counter()
        self._here: OrderedDict[Expandable, None] = OrderedDict()  # the least recently used first

    @property
    def taken(self) -> int:
        """Bytes of tables that are expanded."""
        with self._lock:
            return self._taken()

    def hold(self, tables: Expandable) -> bool:
        """Expand a task's tables and keep them until `release`. Returns False if those in use leave no room."""
        with self._lock:
            if tables not in self._here:
                self._shrink(self.size - tables.nbytes)
                if self._taken() + tables.nbytes > self.size:
                    return False
            self._hold(tables)
            return True

    def release(self, tables: Expandable) -> None:
        """Undo one `hold`. The tables stay until their room is wanted."""
        with self._lock:
            self._users[tables] -= 1
            self._shrink(self.size)

    @bracket
    def borrowed(self, tables: Expandable) -> Iterator[None]:
        """Expand a task's tables for a moment, whether there is room or not."""
        with self._lock:
            if tables not in self._here:
                self._shrink(self.size - tables.nbytes)
            self._hold(tables)
        try:
            yield
        finally:
            self.release(tables)

    def needed(self, tables: Expandable, released: Expandable | None = None) -> int:
        """Bytes that these and those in use take together, as if ``released`` had been released once."""
        with self._lock:
            gone = {released} if released is not None and self._users[released] == 1 else set()
            return _nbytes({*self._in_use(), tables} - gone | {tables})

    def has_one_user(self, tables: Expandable) -> bool:
        """Whether a single hold keeps these tables."""
        with self._lock:
            return self._users[tables] == 1

    @property
    def in_use(self) -> int:
        """Bytes of tables that are held."""
        with self._lock:
            return _nbytes(self._in_use())

    def resize(self, size: int) -> None:
        """Have another size, which those in use fit into."""
        with self._lock:
            self.size = size
            self._shrink(size)

    def forget(self, tables: Expandable) -> None:
        """Nobody will ask for these again."""
        with self._lock:
            self._users.pop(tables, None)
            if tables in self._here:
                del self._here[tables]
                tables.give_back()

    def _hold(self, tables: Expandable) -> None:
        if tables not in self._here:
            tables.expand()
            self._here[tables] = None
        self._here.move_to_end(tables)
        self._users[tables] += 1

    def _in_use(self) -> list[Expandable]:
        return [tables for tables in self._here if self._users[tables]]

    def _taken(self) -> int:
        return _nbytes(self._here)

    def _shrink(self, size: int) -> None:
        """Give back what nobody uses, until no more than this is taken or nothing is left to give."""
        taken = self._taken()
        for tables in list(self._here):
            if taken <= size:
                return
            if not self._users[tables]:
                del self._here[tables]
                tables.give_back()
                taken -= tables.nbytes


def _nbytes(some_tables: Iterable[Expandable]) -> int:
    return sum(tables.nbytes for tables in some_tables)
