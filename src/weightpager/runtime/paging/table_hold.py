"""Room for the expanded block tables of a task that is held."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

from weightpager.errors import WeightpagerError
from weightpager.runtime.paging.arena_resizer import ArenaResizer
from weightpager.runtime.paging.state import PagingState
from weightpager.runtime.paging.switch_request import SwitchRequest


class TableHold:
    """One request's hold of its task's tables, in the room that there is or that slots make.

    As a context it undoes the hold if the block fails. Tables that are borrowed are expanded though there is no room,
    for as long as reads take; they go back at the end of the block at the latest.

    Attributes:
        held: whether the tables are held.
        previous_is_gone: whether the previous task has been given up.
    """

    def __init__(self, state: PagingState, resizer: ArenaResizer, request: SwitchRequest) -> None:
        """Nothing is held.

        Args:
            state: what the parts of paging share.
            resizer: makes room at the expense of slots.
            request: names the task and its tables.
        """
        self._state = state
        self._cache = state.memory.tables
        self._resizer = resizer
        self._request = request
        self._borrowed = ExitStack()
        self._is_borrowed = False
        self.held = False
        self.previous_is_gone = False

    def __enter__(self) -> TableHold:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._borrowed.close()
        if error is not None and self.held:
            self.held = False
            if self._request.tables is not None:
                self._cache.release(self._request.tables)

    def try_hold(self) -> bool:
        """Hold them if tasks in use leave room: while storage works, expanding takes no time. Returns whether held."""
        tables = self._request.tables
        self.held = self.held or tables is None or self._cache.hold(tables)
        return self.held

    def try_hold_or_borrow(self, most: int) -> None:
        """Hold them if there is room. Else borrow them, if they take at most so many bytes.

        The previous task still has its own meanwhile.
        """
        tables = self._request.tables
        if not self.try_hold() and tables is not None and tables.nbytes <= most:
            self._borrowed.enter_context(self._cache.borrowed(tables))
            self._is_borrowed = True

    def hold(self) -> None:
        """Hold them, once the task's pages are there or on their way.

        If there is no room, the previous task is given up for its tables, unless somebody else holds it. This comes
        last, since a switch that fails earlier keeps the previous task. If that isn't enough, slots are given up for
        them. Whoever calls has the turn, and not the lock.

        Raises:
            BudgetError: tasks in use leave no room.
            StoreTimeoutError: reads that hang have slots that must go.
            SwitchFailedError: either, after ``give_up``.
        """
        if self.held:
            return
        request = self._request
        with self._state.lock:
            if not self._is_borrowed and self.try_hold():
                return
            previous = None if self.previous_is_gone else request.previous_tables
            gives_up = previous is not None and self._cache.has_one_user(previous)
        if gives_up:
            request.give_up()
            self.previous_is_gone = True
        self._borrowed.close()  # what nobody uses goes, the least recently used first: those of the previous task
        try:
            with self._state.lock:
                self._hold_instead_of_slots()
        except WeightpagerError as error:
            if not self.previous_is_gone:
                raise
            raise request.failed(error) from error

    def _hold_instead_of_slots(self) -> None:
        """Hold them, in place of slots if there is no room. The lock is held."""
        tables = self._request.tables
        if tables is not None and not self.try_hold():
            self._resizer.resize(self._state.memory.budget, self._cache.needed(tables))
            self.try_hold()
