"""Rows that native code reads from files: right, whatever storage and other threads do meanwhile."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
import torch
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from row_caches import RandomTable, looked_up, wrong_while_memory_changes
from weightpager.bundle import PageIndex
from weightpager.errors import EngineClosedError, PageCorruptError, StoreError, StoreTimeoutError
from weightpager.runtime.memory.host_arena import Arena
from weightpager.runtime.paging.pager import Pager
from weightpager.runtime.rows import RowCache, RowReads
from weightpager.store import Sources, VerifyingStore

_native = pytest.importorskip("weightpager.kernels._native")

FIRST = 5


class Files:
    """A table's pages in two files, the second half in the first one."""

    def __init__(self, folder: Path, rows: int, columns: int, page_bytes: int) -> None:
        random = RandomTable.of(rows, columns, page_bytes, rows)
        self.table, self.values = random.table, random.values
        self.page_bytes = page_bytes
        self.pages = [bytes(page_bytes)] * FIRST + random.pages
        self.half = len(self.pages) // 2
        self.paths = [folder / "b", folder / "a"]
        self.paths[0].write_bytes(b"".join(self.pages[: self.half]))
        self.paths[1].write_bytes(b"".join(self.pages[self.half :]))
        self.files = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in self.paths]
        ids = np.stack([np.frombuffer(blake3(page).digest(), np.uint8) for page in self.pages])
        zeros = np.zeros(len(self.pages), np.int32)
        self.store = VerifyingStore(self, PageIndex(ids, zeros, zeros.astype(np.uint64)))

    def sources(self, pages: np.ndarray) -> Sources:
        which = (pages >= self.half).astype(int)
        return Sources(np.array(self.files, np.int32)[which], (pages - which * self.half) * self.page_bytes)

    def read(self, first: int, into: list[memoryview]) -> None:
        for page, view in enumerate(into, first):
            view[:] = self.pages[page]

    def span(self, first: int) -> int:
        return len(self.pages) - first

    def close(self) -> None:
        while self.files:
            os.close(self.files.pop())

    def cache(self, pager: Pager, slots: int, *, by_store: bool = False, read_timeout: float = 20.0) -> RowCache:
        store = VerifyingStore(WithoutFiles(self), self.store.index) if by_store else self.store
        return RowCache(self.table, FIRST, self.page_bytes, slots, RowReads(pager, store, read_timeout))


class WithoutFiles:
    """The same pages, from a store that doesn't say where they lie."""

    def __init__(self, files: Files) -> None:
        self.read, self.span = files.read, files.span

    def close(self) -> None:
        pass


@pytest.fixture(params=["io_uring", "threads"])
def pager(request: pytest.FixtureRequest) -> Iterator[Pager]:
    made = Pager(Arena(1, 1, 64), 4)
    made.own_reads = _native.OwnReads(reads=4, ring=request.param == "io_uring")
    yield made
    made.close()


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    made = Files(tmp_path, 200, 24, 64)
    yield made
    made.close()


def in_memory(cache: RowCache) -> set[int]:
    resident = cache.report.resident
    here, slots = cache._row_in[:resident], np.arange(resident)
    assert (cache._slot_of[here] == slots).all()
    assert (cache._slot_of >= 0).sum() == resident <= cache.slots
    return set(here.tolist())


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 60),
    columns=st.integers(1, 40),
    page_bytes=st.integers(1, 200),
    slots=st.integers(0, 70),
    filled=st.booleans(),
    ticks=st.sampled_from([None, 80, 200]),
    data=st.data(),
)
def test_every_lookup_is_right(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    columns: int,
    page_bytes: int,
    slots: int,
    filled: bool,
    ticks: int | None,
    data: st.DataObject,
) -> None:
    """From files or another store, which give and keep the same rows."""
    files, pager = Files(tmp_path_factory.mktemp("files"), rows, columns, page_bytes), Pager(Arena(1, 1, 64), 4)
    caches = files.cache(pager, slots), files.cache(pager, slots, by_store=True)
    for cache in caches:
        if filled:
            cache.fill()
            assert cache.report.resident == min(slots, rows)
            assert cache.report.faults == cache.report.bytes_read == 0
        if ticks is not None:
            cache._state[2] = 2**32 - 1 - ticks  # that are left
    for _ in range(data.draw(st.integers(1, 8))):
        if data.draw(st.booleans()):
            wanted = data.draw(st.integers(0, 70))
            for cache in caches:
                cache.resize(wanted)
        ids = np.array(data.draw(st.lists(st.integers(0, rows - 1), max_size=80)), np.int64)
        dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
        for cache in caches:
            before = cache.report
            assert torch.equal(looked_up(cache, ids, dtype), files.values[torch.from_numpy(ids)].to(dtype))
            report = cache.report
            assert report.resident <= cache.slots <= rows
            assert report.lookups - before.lookups == len(ids)
            assert (report.hits - before.hits == len(ids)) == (report.faults == before.faults)
            assert (report.faults == before.faults) == (report.fault_seconds == before.fault_seconds)
        assert in_memory(caches[0]) == in_memory(caches[1])
    for cache in caches:
        assert torch.equal(torch.from_numpy(cache.all()), files.values)
    assert pager.close()
    files.close()


def test_who_reads(pager: Pager, files: Files, request: pytest.FixtureRequest) -> None:
    assert pager.own_reads is not None
    assert pager.own_reads.device == ""
    before = files.store.bytes
    looked_up(files.cache(pager, 10), np.arange(50))
    wanted = request.node.callspec.params["pager"]
    assert pager.own_reads.device in {wanted, "threads"}
    assert (files.store.bytes - before) % files.page_bytes == 0 < files.store.bytes - before
    assert pager.reads_ended() == 0


def test_many_pages_are_read_in_pieces(pager: Pager, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightpager.runtime.rows.AT_ONCE", 256)
    cache = files.cache(pager, 200)
    ids = np.repeat(np.arange(200), 2)
    assert torch.equal(looked_up(cache, ids), files.values[torch.from_numpy(ids)])
    assert cache.report.faults == 200
    assert cache.report.bytes_read == files.store.bytes


def test_rows_that_arent_there_and_wrong_memory_are_refused(pager: Pager, files: Files) -> None:
    cache = files.cache(pager, 5)
    for wrong in (200, -1):
        with pytest.raises(IndexError, match="index out of range: expected rows from 0 to 199"):
            looked_up(cache, np.array([0, wrong]))
    right = np.zeros((2, 24), np.float32)
    for out in (right[:1], right[:, :23], right.astype(np.float64), np.zeros((24, 2), np.float32).T):
        with pytest.raises(ValueError, match="expected contiguous"):
            cache.look_up(np.arange(2), out)
    assert cache.report.lookups == 0


def test_a_damaged_page_is_named_and_read_again_later(pager: Pager, files: Files) -> None:
    cache, page = files.cache(pager, 50), files.half + 3
    with files.paths[1].open("r+b") as file:
        file.seek(3 * files.page_bytes + 7)
        file.write(bytes([files.pages[page][7] ^ 4]))
    with pytest.raises(PageCorruptError) as refused:
        looked_up(cache, np.arange(200))
    assert refused.value.page == page
    files.paths[1].write_bytes(b"".join(files.pages[files.half :]))
    assert torch.equal(looked_up(cache, np.arange(200)), files.values)


def test_what_storage_says_is_said(pager: Pager, files: Files) -> None:
    cache = files.cache(pager, 50)
    os.truncate(files.paths[1], 64)
    with pytest.raises(StoreError, match="the file ends too early"):
        looked_up(cache, np.arange(200))
    closed = files.files[1]
    os.close(closed)
    with pytest.raises(StoreError, match="Bad file descriptor"):
        looked_up(cache, np.arange(200))
    files.files[1] = os.open(files.paths[1], os.O_RDONLY)
    assert files.files[1] == closed
    assert cache.report.lookups == 400
    assert len(in_memory(cache)) <= 50


def test_threads_get_what_they_ask_for_while_memory_changes(pager: Pager, files: Files) -> None:
    cache = files.cache(pager, 40)
    assert not wrong_while_memory_changes(cache, files.values, threads=6, times=100)
    assert cache.report.lookups == 6 * 100 * 30
    in_memory(cache)


def test_a_closed_pager_gives_what_is_in_memory_and_nothing_else(pager: Pager, files: Files) -> None:
    cache = files.cache(pager, 20)
    cache.fill()
    here = np.array(sorted(in_memory(cache)))
    assert pager.close()
    assert torch.equal(looked_up(cache, here), files.values[torch.from_numpy(here)])
    with pytest.raises(EngineClosedError, match="open the bundle again"):
        looked_up(cache, np.arange(200))


class Hanging:
    """All pages but those of the second file come from a pipe, when somebody writes them."""

    def __init__(self, files: Files, read_timeout: float) -> None:
        self.files, self.pager = files, Pager(Arena(1, 1, 64), 4)
        self.ends = os.pipe()
        whole = files.files
        files.files = [self.ends[0], whole[1]]
        self.cache = files.cache(self.pager, 50, read_timeout=read_timeout)
        looked_up(self.cache, np.flatnonzero(files.table.places == 199))
        files.files = whole
        assert self.pager.own_reads is not None
        if self.pager.own_reads.device != "io_uring":
            pytest.skip("no io_uring here")

    def row(self, place: int) -> np.ndarray:
        return np.flatnonzero(self.files.table.places == place)

    def answer(self, page: int) -> None:
        os.write(self.ends[1], self.files.pages[page])

    def close(self) -> bool:
        closed = self.pager.close()
        for end in self.ends:
            os.close(end)
        return closed


def test_storage_that_hangs_is_given_up_and_holds_nobody(files: Files) -> None:
    hanging = Hanging(files, read_timeout=0.05)
    with pytest.raises(StoreTimeoutError, match=r"delivered nothing for 0.05 s .* raise read_timeout"):
        looked_up(hanging.cache, hanging.row(0))
    good = hanging.row(199)
    assert torch.equal(looked_up(hanging.cache, good), files.values[torch.from_numpy(good)])  # another lane
    hanging.cache.resize(20)  # nothing is held
    for _ in range(4):  # and no more lanes than there are are lost
        with pytest.raises(StoreTimeoutError):
            looked_up(hanging.cache, hanging.row(0))
    for _ in range(4):
        hanging.answer(FIRST)  # late
    late = looked_up(hanging.cache, hanging.row(190))
    assert torch.equal(late, files.values[torch.from_numpy(hanging.row(190))])
    assert hanging.close()


def test_what_comes_late_but_in_time_is_waited_for(files: Files) -> None:
    hanging = Hanging(files, read_timeout=20)
    later = threading.Timer(0.1, hanging.answer, (FIRST,))
    later.start()
    assert torch.equal(looked_up(hanging.cache, hanging.row(0)), files.values[torch.from_numpy(hanging.row(0))])
    later.join()
    assert hanging.close()


def test_storage_that_works_for_others_is_not_given_up(files: Files) -> None:
    hanging = Hanging(files, read_timeout=0.06)
    count = iter(range(10**6))
    hanging.pager.reads_ended = lambda: next(count)  # type: ignore[method-assign]
    later = threading.Timer(0.4, hanging.answer, (FIRST,))
    later.start()
    assert torch.equal(looked_up(hanging.cache, hanging.row(0)), files.values[torch.from_numpy(hanging.row(0))])
    later.join()
    assert hanging.close()


def test_ctrl_c_ends_a_look_up_that_hangs(files: Files) -> None:
    hanging = Hanging(files, read_timeout=60)
    old = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            looked_up(hanging.cache, hanging.row(0))
    finally:
        signal.signal(signal.SIGALRM, old)
    hanging.answer(FIRST)
    assert hanging.close()


def test_ctrl_c_never_leaves_the_memory_locked(pager: Pager, files: Files) -> None:
    """It comes when a function of Python's own begins; none does while the lock is taken or given back."""
    cache = files.cache(pager, 20)

    def press(frame: FrameType, event: str, argument: object) -> None:
        if frame.f_code.co_name in ("__enter__", "__exit__"):
            raise AssertionError(f"Ctrl-C could come in {frame.f_code.co_name}")

    sys.settrace(press)
    try:
        cache.resize(15)
        assert cache.report.lookups == 0
    finally:
        sys.settrace(None)
    assert torch.equal(looked_up(cache, np.arange(30)), files.values[:30])


def test_closing_gives_up_what_hangs_and_keeps_its_memory(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightpager.runtime.paging.pager.JOIN_SECONDS", 0.05)
    hanging = Hanging(files, read_timeout=0.02)
    with pytest.raises(StoreTimeoutError):
        looked_up(hanging.cache, hanging.row(0))
    assert not hanging.pager.close()
    del hanging.cache, hanging.pager
    gc.collect()
    hanging.answer(FIRST)  # goes to memory that is still there
    time.sleep(0.02)


def test_a_forked_process_is_refused_and_leaves_its_parent_alone(files: Files) -> None:
    pager = Pager(Arena(1, 1, 64), 4)
    cache = files.cache(pager, 20)
    looked_up(cache, np.arange(30))
    child = os.fork()
    if not child:
        code = 1
        try:
            looked_up(cache, np.arange(200))
        except EngineClosedError:
            del cache, pager
            code = 7
        finally:
            os._exit(code)
    signal.alarm(60)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    signal.alarm(0)
    assert torch.equal(looked_up(cache, np.arange(200)), files.values)
    assert pager.close()
