"""Several stores under one numbering, which changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightpager.errors import StoreError
from weightpager.store import JoinedStore, Sources, coalesce

PAGE = 8
NUMBERS = 40


class Numbered:
    """A store whose pages hold its letter and their number; files of it end after every seventh page."""

    def __init__(self, letter: int) -> None:
        self.letter = letter
        self.closed = 0
        self.open = set(range(10))

    def read(self, first: int, into: Sequence[memoryview]) -> None:
        assert not self.closed
        assert first // 7 in self.open
        assert len(into) <= self.span(first)
        for number, view in enumerate(into, first):
            view[:] = bytes([self.letter, number]) * (PAGE // 2)

    def span(self, first: int) -> int:
        return 7 - first % 7

    def sources(self, pages: np.ndarray) -> Sources:
        assert (np.diff(pages) >= 0).all()
        return Sources(np.full(len(pages), self.letter, np.int32), pages)

    def close_but(self, pages: np.ndarray) -> None:
        self.open &= {page // 7 for page in pages.tolist()}

    def close(self) -> None:
        self.closed += 1


def read(store: JoinedStore, numbers: Sequence[int]) -> dict[int, tuple[int, int]]:
    found = {}
    for run in coalesce(numbers, store.span, PAGE):
        views = [memoryview(bytearray(PAGE)) for _ in range(run.count)]
        store.read(run.first, views)
        found.update({run.first + at: (view[0], view[1]) for at, view in enumerate(views)})
    return found


CHANGES = st.tuples(
    st.dictionaries(st.integers(0, NUMBERS - 1), st.integers(0, 60), max_size=20),
    st.sets(st.integers(0, NUMBERS - 1)),
    st.sets(st.integers(0, 60), max_size=3),
    st.booleans(),
)


@given(st.lists(CHANGES, min_size=1, max_size=5))
def test_every_number_is_read_where_the_latest_change_has_it(
    changes: list[tuple[dict[int, int], set[int], set[int], bool]],
) -> None:
    store, stores, always = JoinedStore(), [], []
    expected: dict[int, tuple[int, int]] = {}
    for letter, (moved, kept, open_always, tidy) in enumerate(changes):
        stores.append(Numbered(letter))
        always.append(open_always)
        numbers = sorted(moved)
        expected = {number: place for number, place in expected.items() if number in kept}
        expected |= {number: (letter, moved[number]) for number in numbers}
        pages = np.array([moved[number] for number in numbers], np.int64)
        every = np.array(sorted(expected), np.int64)
        store.change(np.array(numbers, np.int64), stores[-1], pages, every, np.array(sorted(open_always), np.int64))
        if tidy:
            store.close_unused()
            for inner, needed in zip(stores, always, strict=True):
                used = {page for place, page in expected.values() if place == inner.letter} | needed
                assert inner.closed == (not used)
                assert not used or inner.open == {page // 7 for page in used}
        assert read(store, sorted(expected)) == expected
        found = store.sources(every)
        assert found is not None
        assert list(zip(found.descriptors.tolist(), found.offsets.tolist(), strict=True)) == list(
            dict(sorted(expected.items())).values()
        )
        for number in set(range(len(store))) - expected.keys():
            assert store.span(number) == 1
            assert store.sources(np.array([number])) is None
            with pytest.raises(StoreError, match="none of this number"):
                store.read(number, [memoryview(bytearray(PAGE))])
    store.close()
    store.close_unused()
    assert all(inner.closed for inner in stores)


def test_a_number_that_is_kept_is_read_from_where_it_was() -> None:
    store, old = JoinedStore(), Numbered(1)
    store.change(np.array([0, 1]), old, np.array([5, 6]), np.array([0, 1]))
    store.change(np.array([1]), Numbered(2), np.array([9]), np.array([0, 1]))
    store.close_unused()
    assert read(store, [0, 1]) == {0: (1, 5), 1: (2, 9)}
    store.change(np.array([], np.int64), None, np.array([], np.int64), np.array([1]))
    store.close_unused()
    assert old.closed == 1
    assert read(store, [1]) == {1: (2, 9)}


def test_a_store_that_fails_to_close_keeps_no_other_one_open_and_is_not_asked_again() -> None:
    class Stuck(Numbered):
        def close(self) -> None:
            super().close()
            raise OSError("the cable was pulled")

    store, inner = JoinedStore(), [Stuck(1), Numbered(2), Numbered(3)]
    for number, one in enumerate(inner):
        store.change(np.array([number]), one, np.array([0]), np.arange(number + 1))
    store.change(np.array([], np.int64), None, np.array([], np.int64), np.array([2]))
    with pytest.raises(OSError, match="pulled"):
        store.close_unused()
    store.close_unused()
    store.close()
    assert [one.closed for one in inner] == [1, 1, 1]
