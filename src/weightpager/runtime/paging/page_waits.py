"""Who waits for which pages."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import numpy as np
import numpy.typing as npt

from weightpager.interrupts import Condition
from weightpager.runtime.paging.load import storage_hangs


class PendingPages:
    """Counts down the pages of a load, altogether and by model layer. Layers of a running model wait on it.

    Told by the threads that read, asked by those that compute.

    Args:
        pages: the pages on their way.
        layers: int32 [pages of the bundle], the model layer of each.
        read_timeout: seconds without any arrival after which storage is given up.
        before: pages that are read first: as long as these come, storage works.
    """

    def __init__(
        self, pages: Iterable[int], layers: npt.NDArray[np.int32], read_timeout: float, before: Collection[int] = ()
    ) -> None:
        self._changed = Condition()
        self._left = set(pages)
        self._before = set(before) - self._left if before else set()
        self._layers = layers
        self._of_layer: npt.NDArray[np.int64] | None = None  # counted when the first layer asks
        self._read_timeout = read_timeout
        self._steps = 0
        self._error: BaseException | None = None

    @property
    def error(self) -> BaseException | None:
        """Why some pages will not come, once that is known."""
        return self._error

    @property
    def left(self) -> set[int]:
        """Pages that haven't arrived. Not to be changed."""
        return self._left

    @property
    def complete(self) -> bool:
        return not self._left

    def arrived(self, pages: Iterable[int]) -> None:
        """Pages are in place and checked."""
        with self._changed:
            came = self._left.intersection(pages)
            self._left -= came
            if self._of_layer is not None:
                np.subtract.at(self._of_layer, self._layers[list(came)], 1)
            self._steps += 1
            self._changed.notify_all()

    def passed(self, pages: Collection[int]) -> None:
        """Pages have come for somebody. Those that are read before this load's show that storage works."""
        with self._changed:
            came = self._before.intersection(pages)
            if came:
                self._before -= came
                self._steps += 1
                self._changed.notify_all()

    def failed(self, error: BaseException) -> None:
        """Some pages will not come. The first reason stays."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait for all pages.

        Raises:
            StoreTimeoutError: nothing has arrived for ``read_timeout``, nor what was on its way before.
            StoreError, PageCorruptError: what kept a page from coming.
        """
        with self._changed:
            while self._left:
                self._wait_for_change()

    def wait_for(self, layer: int) -> None:
        """Wait for the pages of a model layer and of those before it, of which low-rank pages may hold parts of it.

        The errors are those of `wait`. A failed page of a later layer raises too, unless all that are waited for are
        there.
        """
        if not self._left:
            return
        with self._changed:
            if self._of_layer is None:
                self._of_layer = np.bincount(self._layers[list(self._left)])
            while self._of_layer[: layer + 1].any():
                self._wait_for_change()

    def _wait_for_change(self) -> None:
        if self._error is not None:
            raise self._error
        if not wait_while_progress(self._changed, self._read_timeout, lambda: self._steps):
            self._error = storage_hangs(
                f"storage has delivered nothing for {self._read_timeout:g} s, neither of the {len(self._left)} pages "
                "outstanding nor of what goes before them"
            )
            raise self._error


def wait_while_progress(changed: Condition, seconds: float, progress: Callable[[], int]) -> bool:
    """Wait for news. Returns False if none came for so long, and progress is what it was before."""
    before = progress()
    return changed.wait(seconds) or progress() != before


class Waiters:
    """Those who wait for pages that are on their way. Not thread-safe: its owner holds a lock around every call."""

    def __init__(self) -> None:
        self._all: list[PendingPages] = []

    @property
    def pages(self) -> set[int]:
        return set().union(*(pending.left for pending in self._all))

    def add(self, pending: PendingPages) -> None:
        if not pending.complete:
            self._all.append(pending)

    def waiting_for(self, pages: Collection[int]) -> list[PendingPages]:
        return [pending for pending in self._all if not pending.left.isdisjoint(pages)]

    def passed(self, pages: Collection[int]) -> None:
        """Tell everybody that pages have come: storage works, also for those who wait for others."""
        self._all = [pending for pending in self._all if not pending.complete]
        for pending in self._all:
            pending.passed(pages)

    def fail(self, error: BaseException) -> None:
        """Tell everybody that no more pages will come. Nobody waits any more."""
        waiting, self._all = self._all, []
        for pending in waiting:
            pending.failed(error)

    def remove(self, pending: PendingPages) -> None:
        self._all = [other for other in self._all if other is not pending]
