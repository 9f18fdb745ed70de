"""What the pager loads and reads, and who is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import pytest

from engines import InThread
from faults import HangingStore
from numbered_pages import checked
from weightpager.errors import StoreError, StoreTimeoutError
from weightpager.machine.storage import aligned_memory
from weightpager.runtime.memory.host_arena import Arena
from weightpager.runtime.paging import thread_reads
from weightpager.runtime.paging.load import Priority
from weightpager.runtime.paging.pager import Pager
from weightpager.store import PageStore

PAGE, PAGES = 4096, 16


class Pages:
    """Page p holds the byte p; some are broken."""

    def __init__(self, *broken: int) -> None:
        self.broken = set(broken)
        self.reads: list[range] = []

    def read(self, first: int, into: Sequence[memoryview]) -> None:
        pages = range(first, first + len(into))
        self.reads.append(pages)
        if self.broken.intersection(pages):
            raise StoreError("a bad sector")
        for page, view in zip(pages, into, strict=True):
            view[:] = bytes([page]) * PAGE

    def span(self, first: int) -> int:
        return 100

    def close(self) -> None:
        pass


@pytest.fixture
def arena() -> Arena:
    return Arena(16, 16, PAGE)


@pytest.fixture
def pager(arena: Arena) -> Iterator[Pager]:
    made = Pager(arena, reads=1)
    yield made
    assert made.close()


def start(pager: Pager, store: PageStore, slots: dict[int, int], *more: object) -> int:
    return pager.load(checked(store, PAGES, PAGE), np.array([*slots]), np.array([*slots.values()]), *more)


def read(pager: Pager, store: PageStore, pages: np.ndarray, into: np.ndarray, read_timeout: float = 20) -> int:
    return pager.read(checked(store, PAGES, PAGE), pages, into, read_timeout)


def loaded(pager: Pager, store: Pages, slots: dict[int, int]) -> list[tuple[list[int], BaseException | None]]:
    """What the pager tells of a load: pages that came or failed together."""
    told: list[tuple[list[int], BaseException | None]] = []
    over = threading.Event()

    def on_read_end(pages: Collection[int], error: BaseException | None) -> None:
        told.append((list(pages), error))
        if sum(len(pages) for pages, _ in told) == len(slots):
            over.set()

    start(pager, store, slots, Priority.ON_DEMAND, on_read_end)
    assert over.wait(20)
    return told


def test_each_page_comes_into_its_slot(pager: Pager, arena: Arena) -> None:
    store = Pages()
    slots = {1: 9, 2: 0, 5: 4, 7: 3, 8: 15, 9: 1, 12: 2}
    assert loaded(pager, store, slots) == [([1, 2], None), ([5], None), ([7, 8, 9], None), ([12], None)]
    assert store.reads == [range(1, 3), range(5, 6), range(7, 10), range(12, 13)]
    assert {page: np.unique(arena.pages[slot]).tolist() for page, slot in slots.items()} == {
        page: [page] for page in slots
    }


def test_a_read_that_fails_takes_no_other_along(pager: Pager) -> None:
    told = loaded(pager, Pages(2), {1: 9, 2: 0, 5: 4, 7: 3, 8: 15})
    assert [pages for pages, _ in told] == [[1, 2], [5], [7, 8]]
    assert isinstance(told[0][1], StoreError)
    assert [error for _, error in told[1:]] == [None, None]


def test_reads_that_run_are_changed_under_the_lock_only(pager: Pager) -> None:
    """Removing one compares groups, which lets other threads come between: one that removed at once could die."""
    told, go = threading.Event(), threading.Event()

    def on_read_end(_pages: Collection[int], _error: BaseException | None) -> None:
        told.set()
        go.wait(20)

    start(pager, Pages(), {1: 9, 2: 0}, Priority.ON_DEMAND, on_read_end)
    assert told.wait(20)
    with pager._ways[-1]._changed:
        go.set()
        time.sleep(0.05)  # enough for the thread to come to where it wants the lock
        assert pager.pages == {1, 2}
    assert loaded(pager, Pages(), {5: 4}) == [([5], None)]
    assert not pager.pages & {1, 2}


def private(pages: int) -> np.ndarray:
    return np.frombuffer(aligned_memory(pages * PAGE), np.uint8).reshape(pages, PAGE)


def test_pages_are_read_into_memory_of_the_callers_own(pager: Pager) -> None:
    pages = np.array([1, 2, 5, 7, 8])
    into = private(5)
    assert read(pager, Pages(), pages, into) == 3
    assert (into == pages[:, None]).all()
    assert pager.pages == set()


def test_a_page_that_cannot_be_read_raises_when_the_others_have_ended(pager: Pager) -> None:
    store, into = Pages(2), private(4)
    with pytest.raises(StoreError, match="a bad sector"):
        read(pager, store, np.array([1, 2, 7, 9]), into)
    assert store.reads == [range(1, 3), range(7, 8), range(9, 10)]
    store.broken.clear()
    read(pager, store, np.array([1, 2, 7, 9]), into)
    assert into[:, 0].tolist() == [1, 2, 7, 9]


def test_a_private_read_that_hangs_is_given_up_and_switches_take_nothing_of_it_back(pager: Pager) -> None:
    store = HangingStore(Pages())
    store.hang()
    waiting = InThread(lambda: read(pager, store, np.array([3, 9, 11, 14]), private(4), read_timeout=0.3))
    store.wait_for_a_read()
    assert pager.cancel() == []
    assert pager.pages == set()
    with pytest.raises(StoreTimeoutError, match="nothing for 0.3 s, 4 pages are outstanding"):
        waiting.result()
    store.resume()
    assert loaded(pager, Pages(), {5: 4}) == [([5], None)]


@pytest.mark.slow
def test_a_private_read_waits_behind_others_as_long_as_these_end(pager: Pager) -> None:
    class Slow(Pages):
        def read(self, first: int, into: Sequence[memoryview]) -> None:
            time.sleep(0.25)
            super().read(first, into)

    told = threading.Event()
    start(pager, Slow(), {1: 1, 4: 2, 7: 3, 10: 4, 13: 5}, Priority.REAL_TIME, lambda *_: told.set())
    into = private(1)
    read(pager, Pages(), np.array([6]), into, read_timeout=0.9)
    assert told.is_set()
    assert (into == 6).all()


def test_memory_that_direct_reads_refuse_is_refused(pager: Pager) -> None:
    unaligned = np.frombuffer(aligned_memory(2 * PAGE), np.uint8)[8 : 8 + PAGE].reshape(1, PAGE)
    with pytest.raises(ValueError, match="boundary of 4096 bytes, found it 8"):
        read(pager, Pages(), np.array([1]), unaligned, read_timeout=1)


def test_closing_waits_for_all_reads_that_hang_together(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_reads, "JOIN_SECONDS", 1.0)
    pager, store = Pager(arena, reads=4), HangingStore(Pages())
    store.hang()
    start(pager, store, {page: page for page in range(4)}, Priority.ON_DEMAND, lambda *_: None)
    while len(store.begun) < 4:
        time.sleep(0.001)
    begun = time.monotonic()
    assert not pager.close()
    assert time.monotonic() - begun < 3
    store.resume()
