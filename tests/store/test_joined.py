"""Several stores under one numbering."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from weightpager.store import JoinedStore, coalesce

PAGE = 8


class Numbered:
    """A store whose pages hold its letter and their number; files of it end after every seventh page."""

    def __init__(self, letter: int) -> None:
        self.letter = letter
        self.closed = False

    def read(self, first: int, into: Sequence[memoryview]) -> None:
        assert len(into) <= self.span(first)
        for number, view in enumerate(into, first):
            view[:] = bytes([self.letter, number]) * (PAGE // 2)

    def span(self, first: int) -> int:
        return 7 - first % 7

    def close(self) -> None:
        self.closed = True


@given(st.lists(st.sets(st.integers(0, 60)), min_size=1, max_size=4), st.sets(st.integers(0, 200)))
def test_every_page_comes_from_its_store_in_runs_that_one_read_covers(parts: list[set[int]], wanted: set[int]) -> None:
    store = JoinedStore()
    stores = [Numbered(letter) for letter in range(len(parts))]
    expected = []
    for inner, pages in zip(stores, parts, strict=True):
        store.add(inner, np.array(sorted(pages), np.int64))
        expected += [(inner.letter, page) for page in sorted(pages)]
    assert len(store) == len(expected)
    for run in coalesce(sorted(page for page in wanted if page < len(expected)), store.span, PAGE):
        views = [memoryview(bytearray(PAGE)) for _ in range(run.count)]
        store.read(run.first, views)
        found = [(view[0], view[1]) for view in views]
        assert found == expected[run.first : run.first + run.count]
    store.close()
    assert all(inner.closed for inner in stores)
