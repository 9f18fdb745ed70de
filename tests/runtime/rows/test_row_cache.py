"""Rows looked up through a cache: right whatever is in memory, with faults, evictions, resizing and many threads."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from row_caches import RandomTable, looked_up, wrong_while_memory_changes
from weightpager.runtime.rows.row_cache import RowCache, RowCounts
from weightpager.runtime.rows.row_pages import RowPages

FIRST = 7


class Table:
    """A table of random rows in pages, and what its rows are."""

    def __init__(self, rows: int, columns: int, page_bytes: int, seed: int = 0) -> None:
        random = RandomTable.of(rows, columns, page_bytes, seed)
        self.table, self.values, self.order, self.pages = random.table, random.values, random.order, random.pages
        self.page_bytes = page_bytes
        self.reads: list[list[int]] = []

    def read(self, pages: npt.NDArray[np.int64], into: npt.NDArray[np.uint8]) -> int:
        assert (np.diff(pages) > 0).all()
        self.reads.append(pages.tolist())
        for page, view in zip(pages.tolist(), into, strict=True):
            view[:] = np.frombuffer(self.pages[page - FIRST], np.uint8)
        return len(pages)

    def cache(self, slots: int) -> RowCache:
        return RowCache(self.table, RowPages(self.table.entry, FIRST, self.page_bytes, self.read), slots)


@settings(max_examples=60)
@given(
    rows=st.integers(1, 60),
    columns=st.integers(1, 40),
    page_bytes=st.integers(1, 200),
    slots=st.integers(0, 70),
    filled=st.booleans(),
    data=st.data(),
)
def test_every_lookup_is_right(
    rows: int, columns: int, page_bytes: int, slots: int, filled: bool, data: st.DataObject
) -> None:
    table = Table(rows, columns, page_bytes)
    cache = table.cache(slots)
    if filled:
        cache.fill()
        assert cache.resident == min(slots, rows)
    for _ in range(data.draw(st.integers(1, 8))):
        if data.draw(st.booleans()):
            cache.resize(data.draw(st.integers(0, 70)))
        ids = np.array(data.draw(st.lists(st.integers(0, rows - 1), max_size=80)), np.int64)
        dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
        before = cache.counts
        assert torch.equal(looked_up(cache, ids, dtype), table.values[torch.from_numpy(ids)].to(dtype))
        counts = cache.counts
        assert cache.resident <= cache.slots <= rows
        assert counts.lookups - before.lookups == len(ids)
        assert (counts.hits - before.hits == len(ids)) == (counts.faults == before.faults)
        assert (counts.faults == before.faults) == (counts.nanoseconds == before.nanoseconds)
    assert torch.equal(torch.from_numpy(cache.all()), table.values)


def test_the_most_used_rows_are_filled_in_and_half_of_them_stay() -> None:
    table = Table(100, 8, 64)
    cache = table.cache(20)
    cache.fill()
    hot = table.order[:20].astype(np.int64)
    looked_up(cache, hot)
    assert cache.counts == RowCounts(20, 20)
    looked_up(cache, table.order[20:].astype(np.int64))
    before = cache.counts
    looked_up(cache, hot[:10])
    assert cache.counts.hits == before.hits + 10


def test_after_filling_rows_of_the_last_places_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightpager.runtime.rows.row_pages.AT_ONCE", 256)  # they come in several pieces
    table = Table(100, 8, 64)
    cache = table.cache(20)
    cache.fill()
    looked_up(cache, table.order[50:53].astype(np.int64))
    before = cache.counts.hits
    looked_up(cache, table.order[:17].astype(np.int64))
    assert cache.counts.hits == before + 17


def test_rows_that_come_once_dont_drive_out_those_that_are_used_again() -> None:
    table = Table(200, 8, 64)
    cache = table.cache(40)
    cache.fill()
    again = table.order[50:55].astype(np.int64)
    for _ in range(2):
        looked_up(cache, again)
    for start in range(60, 200, 5):
        looked_up(cache, table.order[start : start + 5].astype(np.int64))
        looked_up(cache, again)
    counts = cache.counts
    assert counts.faults == 5 + 140


def test_what_a_batch_lacks_is_read_once_and_in_one_go() -> None:
    table = Table(64, 14, 64)
    cache = table.cache(4)
    ids = np.repeat(table.order[[40, 41, 60, 3]].astype(np.int64), 3)
    looked_up(cache, ids)
    assert table.reads == [[FIRST + page for page in sorted({40 // 4, 60 // 4, 3 // 4})]]
    assert cache.counts == RowCounts(12, 0, 4, 3 * 64)


def test_many_pages_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightpager.runtime.rows.row_pages.AT_ONCE", 256)
    table = Table(50, 30, 48)
    cache = table.cache(50)
    assert torch.equal(looked_up(cache, np.arange(50)), table.values)
    assert len(table.reads) > 5
    assert looked_up(cache, np.arange(50)).equal(table.values)
    assert cache.counts.hits == 50


def test_rows_that_arent_there_are_refused_as_torch_does() -> None:
    cache = Table(5, 8, 64).cache(5)
    for wrong in (5, -1):
        with pytest.raises(IndexError, match="index out of range"):
            looked_up(cache, np.array([0, wrong]))
    assert cache.counts == RowCounts()


def test_a_failed_read_leaves_all_as_it_was() -> None:
    table = Table(64, 14, 64)
    cache = table.cache(8)
    cache.fill()
    whole, table.pages = table.pages, table.pages[:5]
    with pytest.raises(IndexError):
        looked_up(cache, np.arange(64))
    table.pages = whole
    assert torch.equal(looked_up(cache, np.arange(64)), table.values)


def test_threads_get_what_they_ask_for_while_memory_changes() -> None:
    table = Table(300, 24, 128)
    cache = table.cache(40)
    assert not wrong_while_memory_changes(cache, table.values, threads=4, times=150)
    assert cache.counts.lookups == 4 * 150 * 30


def test_ticks_may_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightpager.runtime.rows.row_memory._LAST_TICK", 8)
    table = Table(30, 8, 64)
    cache = table.cache(6)
    for start in range(0, 30, 3):
        ids = np.arange(start, start + 3)
        assert torch.equal(looked_up(cache, ids), table.values[start : start + 3])
