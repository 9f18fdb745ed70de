"""The demo's cold switches, each beside the whole checkpoints that people read instead."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from weightpager.answers.model import Inputs
from weightpager.bundle import Bundle
from weightpager.config import EngineConfig
from weightpager.doctor.cold import cold_read
from weightpager.engine import Engine
from weightpager.errors import WeightpagerError
from weightpager.progress import Progress
from weightpager.store import StorageModel, all_switches
from weightpager.task_data.held_out import read_held_out
from weightpager_lab.demo.compiled import Compiled, writing_to
from weightpager_lab.demo.result import ROW_FAULTS, DemoSwitch
from weightpager_lab.demo.table import own_parameters, row_bytes
from weightpager_lab.timing import TimedSwitch, doubt, seconds_of, sparse_checkpoint, time_switches, time_whole_read

TEXTS = 40
"""Of each task."""


def row_figures(engine: Engine, held_out: Mapping[str, Path]) -> dict[str, float]:
    """Share of look-ups that hit, and milliseconds that faults add to a forward of one text, by flat key.

    Texts come from each task's file of held-out data.
    Nothing where the bundle has no rows on demand.
    """
    before = engine.report().rows
    if before is None:
        return {}
    lookups = hits = 0
    extra = []
    for task in engine.bundle.tasks:
        engine.activate(task)
        model = engine.model(task)
        for batch in _texts(engine, task, held_out[task]):
            start = engine.report().rows
            first = seconds_of(partial(model.logits, batch))
            end = engine.report().rows
            assert start is not None
            assert end is not None
            lookups, hits = lookups + end.lookups - start.lookups, hits + end.hits - start.hits
            # The quickest of several would be compared with one that isn't chosen: a difference without any fault.
            extra.append(first - median(seconds_of(partial(model.logits, batch)) for _ in range(3)))
    return {
        "rows.resident_share": before.resident / before.rows,
        "rows.hit_rate": hits / lookups,
        ROW_FAULTS: 1e3 * median(extra),
    }


def _texts(engine: Engine, task: str, file: Path) -> list[Inputs]:
    batches = read_held_out(engine.bundle.task(task), file, engine.reader(), engine.limits.vocab_size, 1)
    step = max(1, len(batches) // TEXTS)
    return [batches[number][0] for number in range(0, len(batches), step)][:TEXTS]


REPEATS = 5
IO_THREADS = 8


@dataclass(frozen=True)
class ColdSwitches:
    """What an engine under the demo's budget was measured to do.

    Attributes:
        switches: every ordered pair of tasks.
        row_figures: what rows on demand cost, by flat key.
        note: why a switch may not have been cold; empty if all were.
    """

    switches: list[DemoSwitch]
    row_figures: dict[str, float]
    note: str


def measure(compiled: Compiled, held_out: Mapping[str, Path], budget: int, progress: Progress) -> ColdSwitches:
    """Time every switch of the bundle, and reads of the checkpoints; rows are looked up for each task's held-out data.

    Raises:
        SampleUnavailable: the folder of the bundle can't be written to.
        WeightpagerError: a switch has read other bytes than its plan says.
    """
    bundle = compiled.bundle
    rivals = _read_rivals(bundle, compiled.dense)
    files = [bundle.path / name for name in bundle.manifest.page_file_names()]
    with Engine(bundle, EngineConfig(budget, io_threads=IO_THREADS, rows=row_bytes(bundle))) as engine:
        with cold_read(files) as proof:
            timed = time_switches(engine, REPEATS, partial(progress, "switch"))
        direct = engine.report().direct_io
        figures = row_figures(engine, held_out)
    _check_bytes(bundle, timed)
    doubts = [*rivals.doubts, doubt(proof) if direct else "this file system refuses direct I/O"]
    return ColdSwitches([rivals.beside(switch) for switch in timed], figures, next(filter(None, doubts), ""))


def _check_bytes(bundle: Bundle, timed: list[TimedSwitch]) -> None:
    planned = {(cost.from_task, cost.to_task): cost.bytes for cost in all_switches(bundle, StorageModel())}
    for switch in timed:
        if switch.bytes != planned[switch.from_task, switch.to_task]:
            raise WeightpagerError(f"{switch.from_task} → {switch.to_task}: read other bytes than planned")


@dataclass(frozen=True)
class _WholeRead:
    """Of a checkpoint: its bytes, the median milliseconds, and why the reads may not have been cold, or nothing."""

    bytes: int
    ms: float
    doubt: str

    @classmethod
    def of(cls, path: Path) -> _WholeRead:
        seconds, doubted = time_whole_read(path, REPEATS, IO_THREADS)
        return cls(path.stat().st_size, 1e3 * seconds, doubted)


@dataclass(frozen=True)
class _Rivals:
    """What people read at a switch instead.

    Attributes:
        paged: task → its own sparse checkpoint, paged weights only.
        whole: task → its own sparse checkpoint with all that it has.
        dense: the dense checkpoint.
    """

    paged: dict[str, _WholeRead]
    whole: dict[str, _WholeRead]
    dense: _WholeRead

    @property
    def doubts(self) -> list[str]:
        return [read.doubt for read in (*self.paged.values(), *self.whole.values(), self.dense)]

    def beside(self, switch: TimedSwitch) -> DemoSwitch:
        paged, whole = self.paged[switch.to_task], self.whole[switch.to_task]
        return DemoSwitch(
            from_task=switch.from_task,
            to_task=switch.to_task,
            bytes=switch.bytes,
            ms=switch.seconds * 1e3,
            gbps=switch.bytes / switch.load_seconds / 1e9 if switch.load_seconds else 0.0,
            whole_sparse_bytes=paged.bytes,
            whole_sparse_ms=paged.ms,
            own_checkpoint_bytes=whole.bytes,
            own_checkpoint_ms=whole.ms,
            dense_ms=self.dense.ms,
            raw_ms=None if switch.raw_seconds is None else switch.raw_seconds * 1e3,
        )


def _read_rivals(bundle: Bundle, dense: Path) -> _Rivals:
    with writing_to(bundle.path.parent), tempfile.TemporaryDirectory(dir=bundle.path.parent) as folder:
        beside = own_parameters(bundle)
        paged = {task: _read_sparse(bundle, task, Path(folder), 0) for task in bundle.tasks}
        whole = {task: _read_sparse(bundle, task, Path(folder), beside[task]) for task in bundle.tasks}
    return _Rivals(paged, whole, _WholeRead.of(dense))


def _read_sparse(bundle: Bundle, task: str, folder: Path, beside: int) -> _WholeRead:
    with sparse_checkpoint(bundle, task, folder, beside) as path:
        return _WholeRead.of(path)
