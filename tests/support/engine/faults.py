"""Stores that fail, or hang, on demand."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from weightpager.errors import StoreError
from weightpager.store import LocalStore, PageStore, Sources

HANG_SECONDS = 0.06


class FaultyStore:
    """Passes reads on until told to fail: the next ``failing`` reads and those of ``bad`` pages raise, the next
    ``damaging`` ones give damaged bytes, the next ``shortening`` ones end too early, the next ``hanging`` ones begin
    after `HANG_SECONDS`."""

    def __init__(self, inner: PageStore) -> None:
        self.inner = inner
        self.failing = 0
        self.damaging = 0
        self.shortening = 0
        self.hanging = 0
        self.bad: set[int] = set()
        self.pages_read = 0

    def read(self, first: int, into: Sequence[memoryview]) -> None:
        if self.hanging:
            self.hanging -= 1
            time.sleep(HANG_SECONDS)
        if self.failing:
            self.failing -= 1
            raise StoreError("the cable was pulled")
        if self.bad & set(range(first, first + len(into))):
            raise StoreError("a bad sector")
        self.inner.read(first, into)
        self.pages_read += len(into)
        if self.shortening:
            self.shortening -= 1
            raise StoreError("the file ends too early")
        if self.damaging:
            self.damaging -= 1
            into[-1][7] ^= 0x10

    def span(self, first: int) -> int:
        return self.inner.span(first)

    def close(self) -> None:
        self.inner.close()


class FaultyBlocks(FaultyStore):
    """As `FaultyStore`, but rows of tables are read from their files by whoever wants them.

    Args:
        first: number of the first page of rows.
    """

    def __init__(self, inner: LocalStore, first: int) -> None:
        super().__init__(inner)
        self.files, self.first = inner, first

    def sources(self, pages: npt.NDArray[np.int64]) -> Sources | None:
        return self.files.sources(pages) if pages.min() >= self.first else None


class FaultyFiles(FaultyStore):
    """As `FaultyStore`, but all pages are read from their files without it while nothing is to fail."""

    def __init__(self, inner: LocalStore) -> None:
        super().__init__(inner)
        self.files = inner

    def sources(self, pages: npt.NDArray[np.int64]) -> Sources | None:
        faults = self.failing or self.damaging or self.shortening or self.hanging or self.bad
        return None if faults else self.files.sources(pages)


class HangingStore:
    """Reads of all pages, or of some, wait until `resume`; which pages they were asked for is noted when they begin."""

    def __init__(self, inner: PageStore) -> None:
        self.inner = inner
        self.begun: list[int] = []
        self._hanging: Collection[int] | None = None
        self._may_read = threading.Event()
        self._may_read.set()
        self._begun = threading.Condition()

    def hang(self, pages: Collection[int] | None = None) -> None:
        self._hanging = pages
        self._may_read.clear()

    def resume(self) -> None:
        self._may_read.set()

    def wait_for_a_read(self, pages: Collection[int] | None = None) -> None:
        """Of any page, or of one of these."""
        with self._begun:
            assert self._begun.wait_for(
                lambda: self.begun if pages is None else set(pages).intersection(self.begun), timeout=100
            )

    def wait_for_reads(self, count: int) -> None:
        """Of so many pages."""
        with self._begun:
            assert self._begun.wait_for(lambda: len(self.begun) >= count, timeout=100)

    def read(self, first: int, into: Sequence[memoryview]) -> None:
        with self._begun:
            self.begun.extend(range(first, first + len(into)))
            self._begun.notify_all()
        if self._hanging is None or first in self._hanging:
            assert self._may_read.wait(60)
        self.inner.read(first, into)

    def span(self, first: int) -> int:
        return 1

    def close(self) -> None:
        self.inner.close()
