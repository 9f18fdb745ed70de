"""Room for the expanded block tables of tasks that are held."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from weightpager.errors import WeightpagerError
from weightpager.runtime.memory.table_cache import Expandable
from weightpager.runtime.paging.arena_resizer import ArenaResizer
from weightpager.runtime.paging.state import PagingState
from weightpager.runtime.paging.switch_request import SwitchRequest


class TableHold:
    """One request's hold of its task's tables.

    Attributes:
        held: whether they are held.
        borrowed: gives them back if they are expanded though there is no room, for as long as reads take.
    """

    def __init__(self, holds: TableHolds, request: SwitchRequest) -> None:
        self._holds = holds
        self._request = request
        self.held = False
        self.borrowed = ExitStack()
        self._is_borrowed = False

    def try_hold(self) -> None:
        """Hold them if there is room: while storage works, expanding them takes no time."""
        self.held = self.held or self._holds.try_hold(self._request)

    def try_hold_or_borrow(self, most: int) -> None:
        """Hold them if there is room; else, if they take at most so many bytes, expand them beside it for a while.

        The previous task still has its own meanwhile.
        """
        self.try_hold()
        tables = self._request.tables
        if not self.held and tables is not None and tables.nbytes <= most:
            self.borrowed.enter_context(self._holds.borrowed(tables))
            self._is_borrowed = True

    def hold(self) -> None:
        """Hold them, once the task's pages are there or on their way. Errors are those of `TableHolds.hold`."""
        if not self.held:
            self._holds.hold(self._request, self.borrowed if self._is_borrowed else None)


class TableHolds:
    """Has a task's block tables expanded, in the room that there is or that slots make."""

    def __init__(self, state: PagingState, resizer: ArenaResizer) -> None:
        self._state = state
        self._resizer = resizer

    @contextmanager
    def to_hold(self, request: SwitchRequest) -> Iterator[TableHold]:
        """A hold of a task's tables, undone if the block fails."""
        hold = TableHold(self, request)
        try:
            with hold.borrowed:
                yield hold
        except BaseException:
            if hold.held and request.tables is not None:
                self._state.memory.tables.release(request.tables)
            raise

    def borrowed(self, tables: Expandable) -> AbstractContextManager[None]:
        """A task's tables for a moment, whether there is room or not."""
        return self._state.memory.tables.borrowed(tables)

    def try_hold(self, request: SwitchRequest) -> bool:
        """Hold a task's tables, unless those of tasks in use leave no room."""
        return request.tables is None or self._state.memory.tables.hold(request.tables)

    def hold(self, request: SwitchRequest, borrowed: ExitStack | None = None) -> None:
        """Hold a task's tables, once its pages are there or on their way.

        If there is no room, the previous task gives up its own: all that could fail has been done. If others hold
        that too, or none is left, slots make room. Whoever calls has the turn, and not the lock.

        Args:
            request: names the task.
            borrowed: has them expanded already, though there was no room; closed as soon as there can be.

        Raises:
            BudgetError: tasks in use leave no room.
            StoreTimeoutError: reads that hang have slots that must go.
            SwitchFailedError: either, after ``give_up``.
        """
        cache = self._state.memory.tables
        with self._state.lock:
            if borrowed is None and self.try_hold(request):
                return
            gives_up = request.previous_tables is not None and cache.has_one_user(request.previous_tables)
        if gives_up:
            request.give_up()
        if borrowed is not None:
            borrowed.close()  # what nobody uses goes, the least recently used first: those of the previous task
        try:
            with self._state.lock:
                if request.tables is not None and not cache.hold(request.tables):
                    self._resizer.resize(self._state.memory.budget, cache.needed(request.tables))
                    cache.hold(request.tables)
        except WeightpagerError as error:
            if not gives_up:
                raise
            raise request.failed(error) from error
