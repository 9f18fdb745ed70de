"""How everything is timed: in turns, by medians, switches from a known state, reads proved cold."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from weightpager.bundle import Bundle
from weightpager.doctor.cold import ColdProof, cold_read
from weightpager.engine import Engine
from weightpager.errors import WeightpagerError
from weightpager.machine.storage import DirectFile
from weightpager.progress import StepProgress, silent
from weightpager_lab.direct_reads import DirectReader, RawReads, new_buffer

Key = TypeVar("Key", bound=Hashable)

LEAST_SECONDS = 0.012
"""Of what is timed in one piece where calls are short."""


def seconds_of(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def repeated(call: Callable[[], object]) -> Callable[[], float]:
    """A run of so many calls that their time can be measured, at least `LEAST_SECONDS`; it gives the mean of one.

    How many that are two calls tell, which are made at once.
    """
    count = max(1, int(2 * LEAST_SECONDS / seconds_of(lambda: (call(), call()))))

    def run() -> float:
        start = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - start) / count

    return run


def in_turns(runs: Mapping[Key, Callable[[], float]], repeats: int, *, warm: int = 1) -> dict[Key, list[float]]:
    """The seconds that each run gives, a value for each repeat; a machine that slows down slows them all.

    Args:
        runs: what gives seconds, such as `repeated`, or `seconds_of` with its call.
        repeats: that count.
        warm: that come before these.
    """
    found: dict[Key, list[float]] = {key: [] for key in runs}
    for repeat in range(warm + repeats):
        for key, run in runs.items():
            seconds = run()
            if repeat >= warm:
                found[key].append(seconds)
    return found


def intervals(items: Iterable[object]) -> Iterator[float]:
    """Seconds that each item but the first takes to come."""
    before = None
    for _ in items:
        now = time.perf_counter()
        if before is not None:
            yield now - before
        before = time.perf_counter()


def median_ms(seconds: Iterable[float]) -> float:
    """Milliseconds."""
    return 1e3 * statistics.median(seconds)


class Ratio(NamedTuple):
    """How many times as long something takes: the quartiles over pairs that were timed in turns."""

    low: float
    median: float
    high: float


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> Ratio:
    """Theirs over ours, pair by pair: what slows both down doesn't count. All three are equal of a single pair."""
    return Ratio(*map(float, np.percentile([a / b for a, b in zip(theirs, ours, strict=True)], [25, 50, 75])))


def spread(values: Sequence[float], method: Literal["linear", "lower"] = "linear") -> dict[str, float] | None:
    """Mean, median and high percentiles, between two values or the lower one; None of nothing."""
    if not len(values):
        return None
    p50, p95, p99 = np.percentile(values, [50, 95, 99], method=method)
    return {"mean": statistics.fmean(values), "p50": float(p50), "p95": float(p95), "p99": float(p99)}


def doubt(proof: ColdProof) -> str:
    """Why direct reads may not have been cold; empty if they were."""
    if not proof.cold:
        return proof.reason
    return f"{proof.left_bytes} bytes went through the page cache" if proof.left_bytes else ""


@dataclass(frozen=True)
class TimedSwitch:
    """Medians over the repeats of one ordered pair.

    Attributes:
        from_task, to_task: the pair.
        pages, bytes: that were loaded.
        seconds: of the whole switch.
        load_seconds: of its reads.
        beside: by name, of what took turns with the switch.
    """

    from_task: str
    to_task: str
    pages: int
    bytes: int
    seconds: float
    load_seconds: float
    beside: Mapping[str, float]

    @property
    def raw_seconds(self) -> float | None:
        """Of the same reads made and hashed by plain native threads; None without the native module."""
        return self.beside.get("raw")


def leave_only(engine: Engine, task: str | None = None) -> None:
    """Have just this task in the arena, active; or none."""
    engine.deactivate()
    engine.evict()
    if task is not None:
        engine.activate(task)


def time_switch(
    engine: Engine, a: str, b: str, repeats: int, beside: Mapping[str, Callable[[], float]] | None = None
) -> TimedSwitch:
    """Time a switch with just the task that is left in the arena.

    Args:
        engine: over the bundle.
        a: the task that is left.
        b: the next one.
        repeats: of the pair.
        beside: what else is timed, after one switch and before the next: storage may be faster at what was just read.

    Raises:
        WeightpagerError: repeats have read different bytes.
    """
    reports, others = [], {name: list[float]() for name in beside or {}}

    def time_others() -> None:
        for name, run in (beside or {}).items():
            others[name].append(run())

    for number in range(repeats):
        leave_only(engine, a)
        if number % 2:
            time_others()
        engine.activate(b)
        reports.append(engine.report().switches[-1])
        if not number % 2:
            time_others()
    if len({report.bytes for report in reports}) != 1:
        raise WeightpagerError(f"{a} → {b}: expected the same bytes in every repeat")
    return TimedSwitch(
        a,
        b,
        reports[0].pages,
        reports[0].bytes,
        statistics.median(report.seconds for report in reports),
        statistics.median(report.load_seconds for report in reports),
        {name: statistics.median(seconds) for name, seconds in others.items()},
    )


def time_switches(engine: Engine, repeats: int, progress: StepProgress = silent) -> list[TimedSwitch]:
    """Time every ordered pair, each beside its raw reads."""
    names = list(engine.bundle.tasks)
    pairs = [(a, b) for a in names for b in names if a != b]
    timed = []
    with closing(RawReads(engine.bundle)) as raw:
        for done, (a, b) in enumerate(pairs, 1):
            timed.append(time_switch(engine, a, b, repeats, raw_reads(raw, engine.bundle, a, b)))
            progress(done, len(pairs))
    return timed


def raw_reads(raw: RawReads, bundle: Bundle, a: str, b: str) -> dict[str, Callable[[], float]]:
    """What stands beside a switch as ``raw``: the reads that it makes; nothing without the native module."""
    missing = np.setdiff1d(bundle.pages_of(b), bundle.pages_of(a), assume_unique=True)
    return {"raw": partial(raw.seconds, missing)} if raw.available else {}


def time_whole_read(path: Path, repeats: int, threads: int, limit: int | None = None) -> tuple[float, str]:
    """Median seconds to read a file whole into memory, several reads in flight; and why it may not have been cold.

    With a limit, so many bytes from its beginning instead of all.

    The strongest form of what people do today: the memory is mapped and the threads run before the clock starts, and
    nothing is parsed, copied into a module, or checked.
    """
    size = path.stat().st_size if limit is None else min(limit, path.stat().st_size)
    memory = new_buffer(size)
    memory.write(bytes(len(memory)))
    with (
        closing(DirectReader(threads)) as reader,
        closing(DirectFile(path)) as file,
        cold_read([path]) as proof,
    ):
        whole = partial(seconds_of, lambda: reader.fill(memoryview(memory), file, path, count=size))
        seconds = in_turns({path: whole}, repeats, warm=0)[path]
    return statistics.median(seconds), doubt(proof) if file.direct else "this file system refuses direct I/O"


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
