"""Which rows stay in memory, and what is read for those that don't."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from row_caches import RandomTable, looked_up, wrong_while_memory_changes
from weightpager.bundle import PageIndex
from weightpager.errors import StoreError
from weightpager.kernels.choice import NATIVE
from weightpager.runtime import rows as runtime_rows
from weightpager.runtime.memory.host_arena import Arena
from weightpager.runtime.paging.pager import Pager
from weightpager.runtime.rows import RowCache, RowReads
from weightpager.store import VerifyingStore

FIRST = 7

needs_native = pytest.mark.skipif(not NATIVE, reason="without native code no row is kept")


@dataclass(frozen=True)
class NotedReads(RowReads):
    """Notes which pages are asked for."""

    noted: list[list[int]]

    def pages(self, numbers: npt.NDArray[np.int64], page_bytes: int) -> npt.NDArray[np.uint8]:
        assert (np.diff(numbers) > 0).all()
        self.noted.append(numbers.tolist())
        return super().pages(numbers, page_bytes)


class Table:
    """A table of random rows in pages, and what its rows are."""

    def __init__(self, pager: Pager, rows: int, columns: int, page_bytes: int, seed: int = 0) -> None:
        random = RandomTable.of(rows, columns, page_bytes, seed)
        self.table, self.values, self.order, self.pages = random.table, random.values, random.order, random.pages
        self.page_bytes = page_bytes
        self.reads: list[list[int]] = []
        pages = [bytes(page_bytes)] * FIRST + self.pages
        ids = np.stack([np.frombuffer(blake3(page).digest(), np.uint8) for page in pages])
        zeros = np.zeros(len(pages), np.int32)
        store = VerifyingStore(self, PageIndex(ids, zeros, zeros.astype(np.uint64)))
        self._reads = NotedReads(pager, store, 20.0, self.reads)

    def read(self, first: int, into: Sequence[memoryview]) -> None:
        for page, view in enumerate(into, first):
            view[:] = self.pages[page - FIRST]

    def span(self, first: int) -> int:
        return FIRST + len(self.pages) - first

    def close(self) -> None:
        pass

    def cache(self, slots: int) -> RowCache:
        return RowCache(self.table, FIRST, self.page_bytes, slots, self._reads)


@pytest.fixture(scope="module")
def pager() -> Iterator[Pager]:
    made = Pager(Arena(1, 1, 64), 2)
    yield made
    assert made.close()


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_rows, "NATIVE", False)


@pytest.mark.usefixtures("plain")
@settings(max_examples=60)
@given(
    rows=st.integers(1, 60),
    columns=st.integers(1, 40),
    page_bytes=st.integers(1, 200),
    slots=st.integers(0, 70),
    data=st.data(),
)
def test_without_native_code_every_lookup_is_right(
    pager: Pager, rows: int, columns: int, page_bytes: int, slots: int, data: st.DataObject
) -> None:
    table = Table(pager, rows, columns, page_bytes)
    cache = table.cache(slots)
    cache.fill()
    for _ in range(data.draw(st.integers(1, 4))):
        cache.resize(data.draw(st.integers(0, 70)))
        ids = np.array(data.draw(st.lists(st.integers(0, rows - 1), max_size=80)), np.int64)
        dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
        before = cache.report
        assert torch.equal(looked_up(cache, ids, dtype), table.values[torch.from_numpy(ids)].to(dtype))
        report = cache.report
        assert (report.rows, report.resident, report.resident_bytes, report.hits) == (rows, 0, 0, 0)
        assert report.lookups - before.lookups == len(ids)
        assert report.faults - before.faults == len(set(ids.tolist()))
        assert (len(ids) > 0) == (report.fault_seconds > before.fault_seconds)
    assert torch.equal(torch.from_numpy(cache.all()), table.values)


@pytest.mark.usefixtures("plain")
def test_without_native_code_rows_are_read_in_pieces_and_nothing_else(
    pager: Pager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_rows, "AT_ONCE", 256)
    table = Table(pager, 50, 30, 48)
    cache = table.cache(50)
    assert torch.equal(looked_up(cache, np.arange(50)), table.values)
    assert len(table.reads) > 5
    with pytest.raises(IndexError, match="index out of range: expected rows from 0 to 49"):
        looked_up(cache, np.array([50]))
    table.reads.clear()
    looked_up(cache, table.order[:1].astype(np.int64))
    assert table.reads == [[FIRST]]


@needs_native
def test_the_most_used_rows_are_filled_in_and_half_of_them_stay(pager: Pager) -> None:
    table = Table(pager, 100, 8, 64)
    cache = table.cache(20)
    cache.fill()
    hot = table.order[:20].astype(np.int64)
    looked_up(cache, hot)
    assert (cache.report.lookups, cache.report.hits, cache.report.faults, cache.report.bytes_read) == (20, 20, 0, 0)
    looked_up(cache, table.order[20:].astype(np.int64))
    before = cache.report
    looked_up(cache, hot[:10])
    assert cache.report.hits == before.hits + 10


@needs_native
def test_after_filling_rows_of_the_last_places_go_first(pager: Pager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightpager.runtime.rows.AT_ONCE", 256)  # they come in several pieces
    table = Table(pager, 100, 8, 64)
    cache = table.cache(20)
    cache.fill()
    looked_up(cache, table.order[50:53].astype(np.int64))
    before = cache.report.hits
    looked_up(cache, table.order[:17].astype(np.int64))
    assert cache.report.hits == before + 17


@needs_native
def test_rows_that_come_once_dont_drive_out_those_that_are_used_again(pager: Pager) -> None:
    table = Table(pager, 200, 8, 64)
    cache = table.cache(40)
    cache.fill()
    again = table.order[50:55].astype(np.int64)
    for _ in range(2):
        looked_up(cache, again)
    for start in range(60, 200, 5):
        looked_up(cache, table.order[start : start + 5].astype(np.int64))
        looked_up(cache, again)
    counts = cache.report
    assert counts.faults == 5 + 140


@needs_native
def test_what_a_batch_lacks_is_read_once_and_in_one_go(pager: Pager) -> None:
    table = Table(pager, 64, 14, 64)
    cache = table.cache(4)
    ids = np.repeat(table.order[[40, 41, 60, 3]].astype(np.int64), 3)
    looked_up(cache, ids)
    assert table.reads == [[FIRST + page for page in sorted({40 // 4, 60 // 4, 3 // 4})]]
    report = cache.report
    assert (report.lookups, report.hits, report.faults, report.bytes_read) == (12, 0, 4, 3 * 64)


@needs_native
def test_many_pages_are_read_in_pieces(pager: Pager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightpager.runtime.rows.AT_ONCE", 256)
    table = Table(pager, 50, 30, 48)
    cache = table.cache(50)
    assert torch.equal(looked_up(cache, np.arange(50)), table.values)
    assert len(table.reads) > 5
    assert looked_up(cache, np.arange(50)).equal(table.values)
    assert cache.report.hits == 50


@needs_native
def test_rows_that_arent_there_are_refused_as_torch_does(pager: Pager) -> None:
    cache = Table(pager, 5, 8, 64).cache(5)
    for wrong in (5, -1):
        with pytest.raises(IndexError, match="index out of range"):
            looked_up(cache, np.array([0, wrong]))
    assert (cache.report.lookups, cache.report.faults) == (0, 0)


@needs_native
def test_a_failed_read_leaves_all_as_it_was(pager: Pager) -> None:
    table = Table(pager, 64, 14, 64)
    cache = table.cache(8)
    cache.fill()
    whole, table.pages = table.pages, table.pages[:5]
    with pytest.raises(StoreError, match="list index out of range"):
        looked_up(cache, np.arange(64))
    table.pages = whole
    assert torch.equal(looked_up(cache, np.arange(64)), table.values)


@needs_native
def test_threads_get_what_they_ask_for_while_memory_changes(pager: Pager) -> None:
    table = Table(pager, 300, 24, 128)
    cache = table.cache(40)
    assert not wrong_while_memory_changes(cache, table.values, threads=4, times=150)
    assert cache.report.lookups == 4 * 150 * 30


@needs_native
def test_ticks_may_run_out(pager: Pager) -> None:
    table = Table(pager, 30, 8, 64)
    cache = table.cache(6)
    cache._state[2] = 2**32 - 1 - 8
    for start in range(0, 30, 3):
        ids = np.arange(start, start + 3)
        assert torch.equal(looked_up(cache, ids), table.values[start : start + 3])
