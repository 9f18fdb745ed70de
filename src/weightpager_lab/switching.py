"""Times cold task switches, and what people do instead: reading the next task's weights whole."""

from __future__ import annotations

import mmap
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from weightpager.bundle import Bundle
from weightpager.doctor.cold import ColdProof, cold_read
from weightpager.engine import Engine
from weightpager.errors import StoreError, WeightpagerError
from weightpager.machine.storage import ALIGNMENT, DirectFile, aligned_memory
from weightpager.progress import StepProgress, silent
from weightpager.store import LocalStore, most_pages

_PIECE = 1 << 20


class DirectReader:
    """Reads parts of files past the page cache; its threads run before any clock starts.

    Args:
        threads: reads in flight.
        reading: what a read of so many bytes runs in, such as one that slows it down.
    """

    def __init__(self, threads: int, reading: Callable[[int], AbstractContextManager[None]] | None = None) -> None:
        self._pool = ThreadPoolExecutor(threads)
        self._reading = reading
        list(self._pool.map(time.sleep, [0.01] * threads))

    def read(self, path: Path, into: memoryview, offset: int = 0, count: int | None = None) -> int:
        """Open a file and `fill` a buffer from it; how many bytes there were.

        Raises:
            StoreError: the file can't be read, or ends too early.
        """
        try:
            with closing(DirectFile(path)) as file:
                return self.fill(into, file, path, offset, count)
        except OSError as error:
            raise StoreError(f"cannot open {path}: {error.strerror}") from error

    def fill(self, into: memoryview, file: DirectFile, path: Path, offset: int = 0, count: int | None = None) -> int:
        """Fill the start of a buffer with a file's bytes from an aligned offset on; how many there were.

        Args:
            into: page-aligned, of `new_buffer`'s length for so many bytes.
            file: to read from.
            path: of the file, for errors.
            offset: a multiple of `ALIGNMENT`.
            count: how many bytes; None for all that follow.

        Raises:
            StoreError: the file can't be read, or ends too early.
        """
        size = file.size - offset if count is None else count

        def piece(start: int) -> int:
            wanted = min(_PIECE, size - start)
            length = -(-wanted // ALIGNMENT) * ALIGNMENT
            with nullcontext() if self._reading is None else self._reading(length):
                return file.read([into[start : start + length]], offset + start, wanted)

        try:
            filled = sum(self._pool.map(piece, range(0, size, _PIECE)))
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}") from error
        if filled < size:
            raise StoreError(f"{path}: expected {size} bytes from {offset} on, read {filled}")
        return size

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


def new_buffer(count: int) -> mmap.mmap:
    """Page-aligned memory for so many bytes from any aligned offset on; taken when it is first written to."""
    return aligned_memory(max(1, -(-count // _PIECE)) * _PIECE)


IN_FLIGHT = 8


class RawReads:
    """Reads pages of a bundle as a switch does, into memory of its own, without an engine."""

    def __init__(self, bundle: Bundle) -> None:
        """Open the bundle's page files.

        Raises:
            BundleError, StoreError: they can't be opened.
        """
        self._bundle = bundle
        self._store = LocalStore(bundle)
        memory = new_buffer(max(len(bundle.pages_of(task)) for task in bundle.tasks) * bundle.page_bytes)
        self._rows = np.frombuffer(memory, np.uint8)
        self._rows[:] = 0  # taken before any clock runs

    def seconds(self, pages: npt.NDArray[np.int64]) -> float | None:
        """How long it takes to read and hash these pages, ascending, eight reads in flight.

        Reads are joined as a load's are; threads are there before the clock runs. None without the native module.

        Raises:
            StoreError: a page can't be read, or isn't what it should be.
        """
        try:
            import weightpager.kernels._native as _native
        except ImportError:
            return None
        sources, ids = self._store.sources(pages), self._bundle.pages.ids[pages]
        slots = np.arange(len(pages))
        seconds = _native.raw_reads(
            IN_FLIGHT,
            most_pages(self._bundle.page_bytes),
            len(pages),
            pages.ctypes.data,
            sources.descriptors.ctypes.data,
            sources.offsets.ctypes.data,
            slots.ctypes.data,
            ids.ctypes.data,
            self._rows.ctypes.data,
            self._bundle.page_bytes,
        )
        if seconds < 0:
            raise StoreError(f"{self._bundle.path}: a page can't be read, or isn't what it should be")
        return seconds

    def close(self) -> None:
        """Give back descriptors."""
        self._store.close()


@dataclass(frozen=True)
class TimedSwitch:
    """Medians over the repeats of one ordered pair.

    ``seconds`` is the whole switch, ``load_seconds`` its reads; ``raw_seconds`` are the same reads made and hashed by
    plain native threads, right before or after each switch, None without the native module.
    """

    from_task: str
    to_task: str
    pages: int
    bytes: int
    seconds: float
    load_seconds: float
    raw_seconds: float | None = None


def time_switches(engine: Engine, repeats: int, progress: StepProgress = silent) -> list[TimedSwitch]:
    """Time every ordered pair: the arena holds just the task that is left, then the next one is activated."""
    names = list(engine.bundle.tasks)
    pairs = [(a, b) for a in names for b in names if a != b]
    timed = []
    with closing(RawReads(engine.bundle)) as raw:
        for done, (a, b) in enumerate(pairs, 1):
            timed.append(_time_pair(engine, raw, a, b, repeats))
            progress(done, len(pairs))
    return timed


def _time_pair(engine: Engine, raw: RawReads, a: str, b: str, repeats: int) -> TimedSwitch:
    missing = np.setdiff1d(engine.bundle.pages_of(b), engine.bundle.pages_of(a), assume_unique=True)
    reports, raws = [], []
    for number in range(repeats):
        engine.deactivate()
        engine.evict()
        engine.activate(a)
        if number % 2:  # in turns: storage may be faster at what it has just read
            raws.append(raw.seconds(missing))
        engine.activate(b)
        reports.append(engine.report().switches[-1])
        if not number % 2:
            raws.append(raw.seconds(missing))
    if len({report.bytes for report in reports}) != 1:
        raise WeightpagerError(f"{a} → {b}: expected the same bytes in every repeat")
    return TimedSwitch(
        a,
        b,
        reports[0].pages,
        reports[0].bytes,
        statistics.median(report.seconds for report in reports),
        statistics.median(report.load_seconds for report in reports),
        statistics.median(seconds for seconds in raws if seconds is not None) if None not in raws else None,
    )


def time_whole_read(path: Path, repeats: int, threads: int, limit: int | None = None) -> tuple[float, str]:
    """Median seconds to read a file whole into memory, several reads in flight; and why it may not have been cold.

    With a limit, so many bytes from its beginning instead of all.

    The strongest form of what people do today: the memory is mapped and the threads run before the clock starts, and
    nothing is parsed, copied into a module, or checked.
    """
    size = path.stat().st_size if limit is None else min(limit, path.stat().st_size)
    memory = new_buffer(size)
    memory.write(bytes(len(memory)))
    reader = DirectReader(threads)
    try:
        with closing(DirectFile(path)) as file, cold_read([path]) as proof:
            seconds = [_whole_read(reader, memoryview(memory), file, path, size) for _ in range(repeats)]
    finally:
        reader.close()
    return statistics.median(seconds), doubt(proof) if file.direct else "this file system refuses direct I/O"


def doubt(proof: ColdProof) -> str:
    """Why direct reads may not have been cold; empty if they were."""
    if not proof.cold:
        return proof.reason
    return f"{proof.left_bytes} bytes went through the page cache" if proof.left_bytes else ""


@contextmanager
def sparse_checkpoint(bundle: Bundle, task: str, folder: Path, beside: int = 0) -> Iterator[Path]:
    """A task's kept blocks as one compact file, as a tool without sharing would store them; removed afterwards.

    Args:
        bundle: of the task.
        task: its name.
        folder: to write to.
        beside: bytes of other parameters in the same file.
    """
    path = folder / f"{task}.sparse"
    count = len(bundle.kept_locations(task)) * bundle.block_bytes + beside
    path.write_bytes(os.urandom(count))
    with path.open("rb") as file:
        os.fsync(file.fileno())
    try:
        yield path
    finally:
        path.unlink()


def _whole_read(reader: DirectReader, into: memoryview, file: DirectFile, path: Path, size: int) -> float:
    start = time.perf_counter()
    reader.fill(into, file, path, count=size)
    return time.perf_counter() - start
