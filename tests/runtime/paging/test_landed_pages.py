"""Pages that land beside the arena: the right ones, in the slots that they are given, or a clear error and nothing."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator

import numpy as np
import pytest
from blake3 import blake3

from weightpager.bundle import PageIndex
from weightpager.errors import PageCorruptError, StoreError, StoreTimeoutError
from weightpager.runtime.memory.host_arena import Arena
from weightpager.runtime.paging.pager import LandedPages
from weightpager.store import Sources, VerifyingStore
from weightpager.store.read_plan import SMALL_SWITCH_BYTES, most_pages

_native = pytest.importorskip("weightpager.kernels._native")

PAGE, PAGES = 4096, 300


class File:
    """Pages one behind the other in a file, or in a pipe, from which nothing comes."""

    def __init__(self, content: np.ndarray, path: str) -> None:
        self.content = content
        content.tofile(path)
        self.file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.pipe = os.pipe()
        self.hangs = False

    def sources(self, pages: np.ndarray) -> Sources:
        return Sources(np.full(len(pages), self.pipe[0] if self.hangs else self.file, np.int32), pages * PAGE)

    def read(self, first: int, into: list[memoryview]) -> None:
        os.preadv(self.file, into, first * PAGE)

    def span(self, first: int) -> int:
        return PAGES - first

    def close(self) -> None:
        for file in (self.file, *self.pipe):
            os.close(file)


@pytest.fixture
def file(tmp_path: object) -> Iterator[File]:
    made = File(np.random.default_rng(0).integers(0, 256, (PAGES, PAGE), np.uint8), f"{tmp_path}/pages")
    yield made
    made.close()


@pytest.fixture
def store(file: File) -> VerifyingStore:
    ids = np.stack([np.frombuffer(blake3(page).digest(), np.uint8) for page in file.content])
    return VerifyingStore(file, PageIndex(ids, np.zeros(PAGES, np.int32), np.zeros(PAGES, np.uint64)))


@pytest.fixture(params=["io_uring", "threads"])
def own_reads(request: pytest.FixtureRequest) -> Iterator[_native.OwnReads]:
    made = _native.OwnReads(reads=4, ring=request.param == "io_uring")
    yield made
    assert made.close(20.0)


@pytest.fixture
def arena() -> Arena:
    return Arena(PAGES, PAGES, PAGE)


def no_read() -> int:
    return 0


def landed(own_reads: _native.OwnReads, store: VerifyingStore, arena: Arena, pages: np.ndarray) -> LandedPages:
    found = LandedPages.begin(own_reads, store, arena, pages, most_pages(PAGE))
    assert found is not None
    return found


def test_each_page_comes_into_its_slot(
    own_reads: _native.OwnReads, store: VerifyingStore, arena: Arena, file: File
) -> None:
    random = np.random.default_rng(1)
    for count in (1, 0, 2, 100, SMALL_SWITCH_BYTES // PAGE):
        pages = np.sort(random.permutation(PAGES)[:count])
        found, before = landed(own_reads, store, arena, pages), store.bytes
        found.wait(20.0, no_read)
        slots = random.permutation(PAGES)[:count]
        found.place(slots)
        assert (np.asarray(arena.pages)[slots] == file.content[pages]).all()
        assert found.reads == (np.diff(pages) != 1).sum() + (count > 0)
        assert found.bytes == store.bytes - before == count * PAGE


def test_what_is_much_or_must_be_read_otherwise_is_left_to_others(
    own_reads: _native.OwnReads, store: VerifyingStore, arena: Arena
) -> None:
    pages = np.arange(SMALL_SWITCH_BYTES // PAGE + 1)
    assert LandedPages.begin(own_reads, store, arena, pages, most_pages(PAGE)) is None
    assert LandedPages.begin(own_reads, store, None, pages[:2], most_pages(PAGE)) is None  # a GPU's memory
    other = VerifyingStore(object(), store.index)
    assert LandedPages.begin(own_reads, other, arena, pages[:2], most_pages(PAGE)) is None
    assert LandedPages.begin(None, store, arena, pages[:2], most_pages(PAGE)) is None


def test_no_more_threads_than_lanes_read_at_once(
    own_reads: _native.OwnReads, store: VerifyingStore, arena: Arena
) -> None:
    taken = [landed(own_reads, store, arena, np.arange(3)) for _ in range(4)]
    assert LandedPages.begin(own_reads, store, arena, np.arange(3), most_pages(PAGE)) is None
    del taken  # nobody waited for them
    end = time.monotonic() + 20
    while LandedPages.begin(own_reads, store, arena, np.arange(3), most_pages(PAGE)) is None and time.monotonic() < end:
        gc.collect()
    landed(own_reads, store, arena, np.arange(3)).wait(20.0, no_read)


def test_a_damaged_page_is_named(own_reads: _native.OwnReads, store: VerifyingStore, arena: Arena, file: File) -> None:
    os.pwrite(file.file, b"?!", 7 * PAGE + 5)
    with pytest.raises(PageCorruptError, match="page 7"):
        landed(own_reads, store, arena, np.array([2, 6, 7, 8])).wait(20.0, no_read)


def test_a_file_that_ends_too_early_is_said(
    own_reads: _native.OwnReads, store: VerifyingStore, arena: Arena, file: File
) -> None:
    os.truncate(file.file, 5 * PAGE + 100)
    with pytest.raises(StoreError, match="ends too early"):
        landed(own_reads, store, arena, np.array([4, 5])).wait(20.0, no_read)


def test_storage_that_hangs_is_given_up_and_keeps_no_slot(store: VerifyingStore, arena: Arena, file: File) -> None:
    own_reads = _native.OwnReads(reads=4, ring=True)
    landed(own_reads, store, arena, np.arange(2)).wait(20.0, no_read)
    if own_reads.device != "io_uring":
        pytest.skip("a pipe hangs only where the kernel has io_uring")
    file.hangs = True
    hanging = landed(own_reads, store, arena, np.arange(2))
    with pytest.raises(StoreTimeoutError, match="0.05 s while pages were read"):
        hanging.wait(0.05, no_read)
    del hanging
    assert not own_reads.close(0.01)
    os.write(file.pipe[1], bytes(2 * PAGE))
    assert own_reads.close(20.0)


def test_after_closing_nothing_begins(store: VerifyingStore, arena: Arena) -> None:
    own_reads = _native.OwnReads(reads=4, ring=True)
    own_reads.close(20.0)
    assert LandedPages.begin(own_reads, store, arena, np.arange(2), most_pages(PAGE)) is None
