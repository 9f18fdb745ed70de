"""Times cold task switches, and what people do instead: reading the next task's weights whole."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from weightpager.bundle import Bundle
from weightpager.doctor.cold import ColdProof, cold_read
from weightpager.engine import Engine
from weightpager.errors import WeightpagerError
from weightpager.lab.direct_reader import DirectReader, new_buffer
from weightpager.lab.raw_reads import RawReads
from weightpager.machine.direct_file import DirectFile
from weightpager.progress import StepProgress, silent


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
