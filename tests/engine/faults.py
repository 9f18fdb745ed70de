"""Stores that fail on demand."""

from __future__ import annotations

from collections.abc import Sequence

from weightpager.errors import StoreError
from weightpager.store import PageStore


class FaultyStore:
    """Passes reads on until told to fail: the next ``failing`` reads and those of ``bad`` pages raise, the next
    ``damaging`` ones give damaged bytes."""

    def __init__(self, inner: PageStore) -> None:
        self.inner = inner
        self.failing = 0
        self.damaging = 0
        self.bad: set[int] = set()
        self.pages_read = 0

    def read(self, first: int, into: Sequence[memoryview]) -> None:
        if self.failing:
            self.failing -= 1
            raise StoreError("the cable was pulled")
        if self.bad & set(range(first, first + len(into))):
            raise StoreError("a bad sector")
        self.inner.read(first, into)
        self.pages_read += len(into)
        if self.damaging:
            self.damaging -= 1
            into[-1][7] ^= 0x10

    def span(self, first: int) -> int:
        return self.inner.span(first)

    def close(self) -> None:
        self.inner.close()
