"""Reads without Python between them: the same pages as by threads, and what files, forks and closing do to them."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import platform
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from devices import HostCopier
from weightpager.bundle import PageIndex
from weightpager.errors import EngineClosedError, PageCorruptError, StoreError
from weightpager.machine.storage import aligned_memory
from weightpager.runtime.memory.host_arena import Arena, PageBuffer
from weightpager.runtime.memory.staged_arena import StagedArena, Staging
from weightpager.runtime.paging.load import PageLoad, Priority, Reads
from weightpager.runtime.paging.pager import Pager
from weightpager.runtime.paging.staged_loads import StagedLoads, _Piece
from weightpager.runtime.paging.thread_reads import ThreadReads
from weightpager.store import Sources, VerifyingStore

_native = pytest.importorskip("weightpager.kernels._native")
from weightpager.runtime.paging import native_reads  # noqa: E402 - it needs the native module

PAGE, PAGES = 8192, 48


class Files:
    """Pages of two files, of which the second follows the first in numbers and not in place."""

    def __init__(self, folder: Path, flags: int) -> None:
        content = np.random.default_rng(0).integers(0, 256, (PAGES, PAGE), np.uint8)
        self.pages = content
        for name, rows in (("a", content[: PAGES // 2]), ("b", content[PAGES // 2 :])):
            (folder / name).write_bytes(bytes(PAGE) + rows.tobytes())
        self.paths = [folder / name for name in "ab"]
        self.files = [os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags) for path in self.paths]

    def sources(self, pages: np.ndarray) -> Sources:
        which, place = np.divmod(pages, PAGES // 2)
        return Sources(np.array(self.files, np.int32)[which], (place + 1) * PAGE)

    def read(self, first: int, into: list[memoryview]) -> None:
        sources = self.sources(np.array([first]))
        assert os.preadv(int(sources.descriptors[0]), into, int(sources.offsets[0])) == sum(map(len, into))

    def span(self, first: int) -> int:
        return PAGES // 2 - first % (PAGES // 2)

    def close(self) -> None:
        while self.files:
            os.close(self.files.pop())


@pytest.fixture(params=["direct", "buffered"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Files]:
    try:
        made = Files(tmp_path, os.O_DIRECT if request.param == "direct" else 0)
    except OSError:
        pytest.skip("no direct reads here")
    yield made
    made.close()


@pytest.fixture
def store(files: Files) -> VerifyingStore:
    ids = np.stack([np.frombuffer(blake3(page).digest(), np.uint8) for page in files.pages])
    return VerifyingStore(files, PageIndex(ids, np.zeros(PAGES, np.int32), np.zeros(PAGES, np.uint64)))


@pytest.fixture(params=["io_uring", "threads"])
def reads(request: pytest.FixtureRequest) -> Iterator[native_reads.NativeReads]:
    made = native_reads.NativeReads(4, ring=request.param == "io_uring")
    yield made
    assert made.close()


class Loaded:
    """Loads pages and waits for what is told."""

    def __init__(
        self, reads: Reads, store: VerifyingStore, pages: np.ndarray, slots: np.ndarray, arena: object
    ) -> None:
        self.came: set[int] = set()
        self.failed: dict[int, BaseException] = {}
        self._left = len(pages)
        self._over = threading.Event()
        self.count = reads.start(PageLoad(store, arena, pages, slots, Priority.ON_DEMAND, self._told))

    def _told(self, pages: Collection[int], error: BaseException | None) -> None:
        if error is None:
            self.came.update(pages)
        else:
            self.failed.update(dict.fromkeys(pages, error))
        self._left -= len(pages)
        if not self._left:
            self._over.set()

    def wait(self) -> Loaded:
        assert self._over.wait(60)
        return self


@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0.05, 1))
@settings(max_examples=20, deadline=None)
def test_pages_come_as_by_threads_of_pythons(tmp_path_factory: pytest.TempPathFactory, seed: int, share: float) -> None:
    files = Files(tmp_path_factory.mktemp("files"), 0)
    ids = np.stack([np.frombuffer(blake3(page).digest(), np.uint8) for page in files.pages])
    index = PageIndex(ids, np.zeros(PAGES, np.int32), np.zeros(PAGES, np.uint64))
    random = np.random.default_rng(seed)
    pages = np.flatnonzero(random.random(PAGES) < share)
    slots = random.permutation(PAGES)[: len(pages)]
    found = []
    for reads in (native_reads.NativeReads(4), ThreadReads(2)):
        arena, store = Arena(PAGES, PAGES, PAGE), VerifyingStore(files, index)
        if len(pages):
            loaded = Loaded(reads, store, pages, slots, arena).wait()
            assert loaded.came == set(pages.tolist())
            assert (arena.pages[slots] == files.pages[pages]).all()
            found.append((loaded.count, store.bytes, arena.untouched))
        assert reads.close()
    assert found[:1] == found[1:]
    files.close()


def test_who_makes_the_reads(reads: native_reads.NativeReads, store: VerifyingStore, request) -> None:
    Loaded(reads, store, np.arange(4), np.arange(4), Arena(8, 8, PAGE)).wait()
    wanted = request.node.callspec.params["reads"]
    assert reads.device in ({wanted, "threads"} if wanted == "io_uring" else {wanted})
    assert reads.pages == set()
    assert reads.reads_ended > 0


def test_a_damaged_page_is_named_and_others_come(
    reads: native_reads.NativeReads, store: VerifyingStore, files: Files
) -> None:
    with files.paths[0].open("r+b") as file:
        file.seek(PAGE * 4 + 77)
        file.write(bytes([int(files.pages[3, 77]) ^ 4]))
        os.fsync(file.fileno())
    pages = np.array([0, 2, 3, 4, 30])
    loaded = Loaded(reads, store, pages, pages, Arena(PAGES, PAGES, PAGE)).wait()
    assert loaded.came == {0, 30}
    assert set(loaded.failed) == {2, 3, 4}
    assert isinstance(loaded.failed[2], PageCorruptError)
    assert loaded.failed[2].page == 3
    assert store.bytes == 5 * PAGE


def test_a_file_that_ends_too_early_is_said(
    reads: native_reads.NativeReads, store: VerifyingStore, files: Files
) -> None:
    os.truncate(files.paths[1], PAGE * 5)
    pages = np.array([1, PAGES // 2 + 2, PAGES - 1])
    loaded = Loaded(reads, store, pages, pages, Arena(PAGES, PAGES, PAGE)).wait()
    assert loaded.came == {1, PAGES // 2 + 2}
    assert str(loaded.failed[PAGES - 1]) == f"cannot read page {PAGES - 1}: the file ends too early"
    assert store.bytes == 2 * PAGE


def test_what_storage_says_is_said(reads: native_reads.NativeReads, store: VerifyingStore, files: Files) -> None:
    files.files[1], kept = os.open(files.paths[1], os.O_WRONLY), files.files[1]
    pages = np.array([1, PAGES - 1])
    loaded = Loaded(reads, store, pages, pages, Arena(PAGES, PAGES, PAGE)).wait()
    assert str(loaded.failed[PAGES - 1]) == f"cannot read page {PAGES - 1}: Bad file descriptor"
    assert isinstance(loaded.failed[PAGES - 1], StoreError)
    files.files.append(kept)


def test_other_stores_are_read_another_way(reads: native_reads.NativeReads) -> None:
    class Elsewhere(Files):
        def __init__(self) -> None:
            """Opens nothing."""

        def sources(self, pages: np.ndarray) -> None:  # type: ignore[override]
            """Not in files."""

    index = PageIndex(np.zeros((1, 32), np.uint8), np.zeros(1, np.int32), np.zeros(1, np.uint64))
    page, arena = np.zeros(1, np.int64), Arena(1, 1, PAGE)
    for inner in (object(), Elsewhere()):
        store = VerifyingStore(inner, index)  # type: ignore[arg-type]
        assert reads.start(PageLoad(store, arena, page, page, Priority.ON_DEMAND, lambda *_: None)) is None


def test_a_closed_one_takes_nothing(store: VerifyingStore) -> None:
    reads = native_reads.NativeReads(2)
    Loaded(reads, store, np.arange(2), np.arange(2), Arena(8, 8, PAGE)).wait()
    before = len(os.listdir("/proc/self/fd"))
    assert reads.close()
    assert len(os.listdir("/proc/self/fd")) < before or reads.device == "threads"
    with pytest.raises(EngineClosedError, match="open the bundle again"):
        Loaded(reads, store, np.arange(2), np.arange(2), Arena(8, 8, PAGE))
    assert reads.pages == set()


@pytest.mark.parametrize("kind", [native_reads.NativeReads, ThreadReads])
def test_without_threads_a_load_is_refused_and_a_later_one_comes(
    store: VerifyingStore, monkeypatch: pytest.MonkeyPatch, kind: Callable[[int], Reads]
) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    reads, pages, arena = kind(2), np.arange(4), Arena(8, 8, PAGE)
    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(StoreError, match=r"none could be started; raise the limit of threads"):
        Loaded(reads, store, pages, pages, arena)
    monkeypatch.undo()
    assert Loaded(reads, store, pages, pages, arena).wait().came == {0, 1, 2, 3}
    assert reads.close()


def test_fewer_threads_than_wanted_read_too(store: VerifyingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = threading.Thread.start, []

    def starts_one(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    reads, pages = ThreadReads(4), np.arange(0, PAGES, 2)
    monkeypatch.setattr(threading.Thread, "start", starts_one)
    assert Loaded(reads, store, pages, pages, Arena(PAGES, PAGES, PAGE)).wait().came == set(pages.tolist())
    assert reads.close()


def test_closing_before_any_thread_could_be_started(store: VerifyingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    reads = native_reads.NativeReads(2)
    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(StoreError):
        Loaded(reads, store, np.arange(2), np.arange(2), Arena(8, 8, PAGE))
    assert reads.close()


def test_closing_during_a_load_tells_whoever_waits(store: VerifyingStore) -> None:
    for _ in range(20):
        reads = native_reads.NativeReads(1)
        loaded = Loaded(reads, store, np.arange(0, PAGES, 2), np.arange(0, PAGES, 2), Arena(PAGES, PAGES, PAGE))
        assert reads.close()
        loaded.wait()
        assert loaded.came | set(loaded.failed) == set(range(0, PAGES, 2))
        assert all(isinstance(error, EngineClosedError) for error in loaded.failed.values())


def test_closing_tells_of_reads_that_never_begin_though_their_load_ends_meanwhile(store: VerifyingStore) -> None:
    failed: list[int] = []

    def told(pages: Collection[int], error: BaseException | None) -> None:
        if error is None:
            return
        assert reads._thread is not None
        reads._thread.join(20)  # it tells of the read in flight, the load's last one
        failed.extend(pages)

    _native.imitate_storage(4 * PAGE)
    try:
        reads = native_reads.NativeReads(1)
        pages = np.arange(0, 8, 2)
        reads.start(PageLoad(store, Arena(8, 8, PAGE), pages, pages, Priority.ON_DEMAND, told))
        while not reads._queue.in_flight:
            time.sleep(0.001)
        assert reads.close()
    finally:
        _native.imitate_storage(0.0)
    assert sorted(failed) == [2, 4, 6]
    assert not reads._loads


@pytest.mark.parametrize("kind", [native_reads.NativeReads, ThreadReads])
def test_closing_tells_everybody_whatever_telling_raises(store: VerifyingStore, kind: Callable[[int], Reads]) -> None:
    reads, arena, busy, go, told = kind(1), Arena(8, 8, PAGE), threading.Event(), threading.Event(), set()

    def keeps_the_thread(*_: object) -> None:
        busy.set()
        go.wait(20)

    def raises(pages: Collection[int], _error: BaseException | None) -> None:
        told.update(pages)
        go.set()
        raise MemoryError("no room for the books")

    for page, on_read_end in ((0, keeps_the_thread), (2, raises), (4, raises), (6, raises)):
        pages = np.array([page])
        reads.start(PageLoad(store, arena, pages, pages, Priority.ON_DEMAND, on_read_end))
    assert busy.wait(20)
    assert reads.close()
    assert told == {2, 4, 6}


def test_what_has_not_begun_is_taken_back_and_never_told(store: VerifyingStore) -> None:
    for _ in range(20):
        reads = native_reads.NativeReads(1)
        pages = np.arange(0, PAGES, 2)
        loaded = Loaded(reads, store, pages, pages, Arena(PAGES, PAGES, PAGE))
        gone = reads.cancel([4, 6])
        assert not {4, 6}.intersection(gone)
        assert reads.close()
        assert loaded.came.isdisjoint(gone)
        assert loaded.came | set(loaded.failed) | set(gone) == set(pages.tolist())


@pytest.fixture
def staged() -> Iterator[tuple[StagedArena, Pager]]:
    arena = StagedArena(PAGES, PAGES, PAGE, Staging(HostCopier(), 3))
    arena.table(np.full(PAGES, -1, np.int32))
    pager = Pager(arena, 4)
    yield arena, pager
    assert pager.close()


class StagedReads:
    """Loads of a pager as `Loaded` begins them."""

    def __init__(self, pager: Pager) -> None:
        self.pager = pager

    def start(self, load: PageLoad) -> int:
        return self.pager.load(load.store, load.pages, load.slots, load.priority, load.on_read_end)


@pytest.mark.parametrize("group_bytes", [1, 4 * PAGE])
def test_a_devices_pages_are_read_from_files_by_native_code(
    staged: tuple[StagedArena, Pager],
    store: VerifyingStore,
    files: Files,
    group_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arena, pager = staged
    monkeypatch.setattr("weightpager.store.read_plan.GROUP_BYTES", group_bytes)
    monkeypatch.setattr(ThreadReads, "start", None)
    pages = np.setdiff1d(np.arange(PAGES), [3, 9, 10, 31])
    slots = np.random.default_rng(1).permutation(PAGES)[: len(pages)]
    loaded = Loaded(StagedReads(pager), store, pages, slots, arena).wait()
    assert (loaded.came, loaded.failed, loaded.count) == (set(pages.tolist()), {}, 5)
    assert (arena.pages[slots].numpy() == files.pages[pages]).all()
    assert arena._slot_of[pages].tolist() == slots.tolist()
    assert store.bytes == len(pages) * PAGE


def test_a_damaged_page_never_reaches_a_device(
    staged: tuple[StagedArena, Pager], store: VerifyingStore, files: Files
) -> None:
    arena, pager = staged
    with files.paths[0].open("r+b") as file:
        file.seek(PAGE * 4 + 77)
        file.write(bytes([int(files.pages[3, 77]) ^ 4]))
        os.fsync(file.fileno())
    pages = np.array([0, 2, 3, 4, 30])
    for _ in range(4):  # stages go back
        loaded = Loaded(StagedReads(pager), store, pages, pages, arena).wait()
        assert loaded.came == {0, 30}
        assert [loaded.failed[page].page for page in (2, 3, 4)] == [3, 3, 3]
    assert not arena.pages[2:5].any()
    assert pager.pages == set()


def test_a_device_whose_copies_fail_says_so(
    staged: tuple[StagedArena, Pager], store: VerifyingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    arena, pager = staged
    monkeypatch.setattr(HostCopier, "start", fails)
    pages = np.arange(0, 12, 2)
    loaded = Loaded(StagedReads(pager), store, pages, pages, arena).wait()
    assert {str(error) for error in loaded.failed.values()} == {
        "cannot copy pages to cpu: CUDA error: an illegal memory access was encountered"
    }
    monkeypatch.undo()
    assert Loaded(StagedReads(pager), store, pages, pages, arena).wait().came == set(pages.tolist())


@pytest.mark.parametrize("started", [0, 1])
def test_a_devices_load_without_threads_is_refused_and_a_later_one_comes(
    staged: tuple[StagedArena, Pager], store: VerifyingStore, monkeypatch: pytest.MonkeyPatch, started: int
) -> None:
    """None that copies, or none that reads."""
    left, start = [started], threading.Thread.start

    def starts_some(thread: threading.Thread) -> None:
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        start(thread)

    (arena, pager), pages = staged, np.arange(0, PAGES, 2)
    monkeypatch.setattr(threading.Thread, "start", starts_some)
    with pytest.raises(StoreError, match=r"none could be started; raise the limit of threads"):
        Loaded(StagedReads(pager), store, pages, pages, arena)
    assert pager.pages == set()
    monkeypatch.undo()
    assert Loaded(StagedReads(pager), store, pages, pages, arena).wait().came == set(pages.tolist())


def test_many_pieces_without_a_stage_are_cancelled_at_once(
    store: VerifyingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever cancels keeps the lock of paging: no piece is compared with all others."""
    compared = []
    monkeypatch.setattr(_Piece, "__eq__", lambda piece, other: compared.append(other) or piece is other)
    arena, pages = StagedArena(PAGES, PAGES, PAGE, Staging(HostCopier(), 1)), np.arange(0, PAGES, 2)
    while arena.stage():
        pass
    loads = StagedLoads(arena, lambda _: 1)
    monkeypatch.setattr("weightpager.store.read_plan.GROUP_BYTES", 1)
    for begun in (pages[::2], pages[1::2]):
        loads.start(store, begun, begun, Priority.PREFETCH, lambda *_: None)
    kept = set(pages[::2].tolist())
    assert sorted(loads.cancel(kept)) == pages[1::2].tolist()
    assert loads.pages == kept
    assert len(compared) <= len(pages)
    loads.stop()
    assert loads.join(5)


def test_closing_tells_of_what_had_no_stage(store: VerifyingStore) -> None:
    for _ in range(20):
        arena = StagedArena(PAGES, PAGES, PAGE, Staging(HostCopier(), 1))
        arena.table(np.full(PAGES, -1, np.int32))
        pager, pages = Pager(arena, 4), np.arange(0, PAGES, 2)
        loaded = Loaded(StagedReads(pager), store, pages, pages, arena)
        assert pager.close()
        loaded.wait()
        assert loaded.came | set(loaded.failed) == set(pages.tolist())
        assert all(isinstance(error, EngineClosedError) for error in loaded.failed.values())
        with pytest.raises(EngineClosedError):
            Loaded(StagedReads(pager), store, pages, pages, arena)


def test_private_memory_is_filled_without_slots(reads: native_reads.NativeReads, store: VerifyingStore) -> None:
    pages = np.array([5, 6, 9, 40])
    rows = np.frombuffer(aligned_memory(len(pages) * PAGE), np.uint8).reshape(len(pages), PAGE)
    Loaded(reads, store, pages, np.arange(len(pages)), PageBuffer(rows)).wait()
    assert rows[:, :3].tolist() == store._inner.pages[pages, :3].tolist()  # type: ignore[attr-defined]


def test_nobody_keeps_a_pager_that_is_not_used_any_more(store: VerifyingStore) -> None:
    reads = native_reads.NativeReads(2)
    Loaded(reads, store, np.arange(2), np.arange(2), Arena(8, 8, PAGE)).wait()
    thread = reads._thread
    del reads
    gc.collect()
    assert thread is not None
    thread.join(20)
    assert not thread.is_alive()


def test_a_forked_process_ends_by_itself(store: VerifyingStore) -> None:
    reads = native_reads.NativeReads(2)
    Loaded(reads, store, np.arange(2), np.arange(2), Arena(8, 8, PAGE)).wait()
    child = os.fork()
    if not child:
        try:
            del reads
        finally:
            os._exit(7)
    signal.alarm(60)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    signal.alarm(0)
    Loaded(reads, store, np.arange(4), np.arange(4), Arena(8, 8, PAGE)).wait()
    assert reads.close()


@pytest.mark.parametrize("kind", [native_reads.NativeReads, ThreadReads])
def test_what_telling_raises_reaches_whoever_waits_and_the_thread_goes_on(
    store: VerifyingStore, kind: Callable[[int], Reads], caplog: pytest.LogCaptureFixture
) -> None:
    reads, pages, arena, told = kind(2), np.arange(2), Arena(8, 8, PAGE), threading.Event()
    errors: list[BaseException | None] = []

    def on_read_end(_pages: Collection[int], error: BaseException | None) -> None:
        errors.append(error)
        if error is None:
            raise MemoryError("no room for the books")
        told.set()
        raise SystemExit

    reads.start(PageLoad(store, arena, pages, pages, Priority.ON_DEMAND, on_read_end))
    assert told.wait(20)
    assert [str(error) for error in errors] == ["None", "no room for the books"]
    assert Loaded(reads, store, pages, pages, arena).wait().came == {0, 1}
    assert reads.close()
    assert "no room for the books" in caplog.text


def _refuse_rings() -> None:
    """Have io_uring_enter fail with EPERM from now on, in all threads of this process, as sandboxes do."""
    instruction, number = struct.Struct("HBBI"), {"x86_64": 317, "aarch64": 277}[platform.machine()]
    filters = ctypes.create_string_buffer(
        instruction.pack(0x20, 0, 0, 0)  # the number of the call
        + instruction.pack(0x15, 0, 1, 426)  # io_uring_enter?
        + instruction.pack(0x06, 0, 0, 0x0005_0000 | errno.EPERM)
        + instruction.pack(0x06, 0, 0, 0x7FFF_0000)
    )
    program = ctypes.create_string_buffer(struct.pack("HP", 4, ctypes.addressof(filters)))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # no new privileges
    assert libc.syscall(number, 1, 1, program) == 0, os.strerror(ctypes.get_errno())


def test_threads_go_on_when_a_sandbox_refuses_the_ring(store: VerifyingStore) -> None:
    child = os.fork()
    if not child:
        code = 1
        try:
            reads, pages, arena = native_reads.NativeReads(2), np.arange(0, PAGES, 2), Arena(PAGES, PAGES, PAGE)
            assert Loaded(reads, store, pages, pages, arena).wait().came == set(pages.tolist())
            _refuse_rings()
            assert Loaded(reads, store, pages + 1, pages + 1, arena).wait().came == set((pages + 1).tolist())
            assert reads.device == "threads"
            assert reads.close()
            code = 0
        except BaseException:  # noqa: BLE001 - the parent says it
            traceback.print_exc()
        finally:
            os._exit(code)
    signal.alarm(120)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    signal.alarm(0)


def test_the_interpreter_ends_while_nobody_closed_it() -> None:
    code = (
        "from weightpager.runtime.paging.native_reads import NativeReads\n"
        "reads = NativeReads(2)\n"
        "reads._start_thread()\n"
        "import time; time.sleep(0.2)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


@given(data=st.binary(max_size=3000), times=st.integers(1, 12), count=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_every_instruction_set_hashes_as_blake3_does(data: bytes, times: int, count: int) -> None:
    buffers = np.frombuffer(data * times * count, np.uint8).reshape(count, -1)
    wanted = b"".join(blake3(row.tobytes()).digest() for row in buffers)
    for number in range(len(_native.hashers())):
        assert _native.digests(number, buffers.ctypes.data, count, buffers.shape[1]) == wanted


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 1023, 1024, 1025, 2048, 3072, 8192, 31744, 65536, 102401])
def test_trees_of_every_shape_are_hashed(size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    for number in range(len(_native.hashers())):
        assert _native.digests(number, data.ctypes.data, 1, size) == blake3(data.tobytes()).digest()
