"""The demo from top to bottom: data → bundles → cold switches → result."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from weightpager.bundle import Bundle
from weightpager.bundle.footprint import smallest_budget
from weightpager.bundle.report.compile_report import DENSE, MASK, CompileReport, read_report
from weightpager.bundle.report.overlap import overlap
from weightpager.config import EngineConfig
from weightpager.doctor.cold import cold_read
from weightpager.doctor.machine import describe
from weightpager.engine import Engine
from weightpager.errors import WeightpagerError
from weightpager.lab.demo.compiled import (
    ALIGNMENT,
    RECOVER_STEPS,
    SPARSITY,
    TRAINING_STEPS,
    Compiled,
    compiled,
    writing_to,
)
from weightpager.lab.demo.ranking import memory_figures, switch_figures, verdict
from weightpager.lab.demo.result import DemoResult, DemoSwitch, DemoTask
from weightpager.lab.demo.row_cost import row_figures
from weightpager.lab.demo.table import own_parameters, row_bytes, rows
from weightpager.lab.samples import SampleUnavailable, minilm, prepare
from weightpager.lab.switching import doubt, sparse_checkpoint, time_switches, time_whole_read
from weightpager.progress import Progress
from weightpager.store import StorageModel, all_switches

EVAL_ITEMS = 300
"""Held-out items a task: eight models are measured on them within the demo's five minutes."""

REPEATS = 5
IO_THREADS = 8


def run_demo(cache: Path, progress: Progress) -> DemoResult:
    """Run the demo; a second run finds data and bundles in the cache and only measures again.

    Raises:
        SampleUnavailable: the model, or all of the tasks but one, can't be fetched, or the cache can't be written to.
    """
    start = time.perf_counter()
    progress("fetch model and data", 0, 1)
    model = minilm(cache)
    samples, missing = prepare(cache, eval_items=EVAL_ITEMS, report=lambda _line: None)
    if len(samples) < 2:
        reasons = "\n".join(f"  {lack.name}: {lack.reason}" for lack in missing)
        raise SampleUnavailable(f"expected two tasks to switch between, got {samples[0].name} alone:\n{reasons}")
    progress("fetch model and data", 1, 1)
    ours = compiled(model, samples, cache, progress)
    budget = smallest_budget(ours.bundle, rows=row_bytes(ours.bundle))
    switches, of_rows, note = _measure(ours, budget, progress)
    report = read_report(ours.bundle)
    memory = rows(ours.bundle, report, switches)
    figures = memory_figures(memory) | switch_figures(switches) | of_rows
    return DemoResult(
        tasks=_tasks(report),
        switches=switches,
        memory=memory,
        overlap=overlap(ours.bundle).tolist(),
        mean_overlap=report.mean_overlap,
        mean_overlap_unaligned=ours.unaligned_overlap,
        duality_gap=report.duality_gap,
        budget=budget,
        sparsity=SPARSITY,
        dtype=ours.bundle.manifest.dtype,
        alignment=ALIGNMENT,
        training_steps=TRAINING_STEPS,
        recover_steps=RECOVER_STEPS,
        page_bytes=report.page_bytes,
        page_fill=report.page_fill,
        dense_checkpoint_bytes=ours.dense.stat().st_size,
        cold=not note,
        cold_note=note,
        repeats=REPEATS,
        missing={task.name: task.reason for task in missing},
        compile_seconds=report.seconds,
        seconds=time.perf_counter() - start,
        machine=describe(),
        figures={key: float(f"{value:.5g}") for key, value in figures.items()},
        verdict=verdict(memory),
        backend=report.backend,
    )


def _tasks(report: CompileReport) -> list[DemoTask]:
    controls = {control.name: control.scores for control in report.controls}
    return [
        DemoTask(
            name=task.name,
            metric=task.metric,
            items=task.items,
            dense=controls[DENSE][task.name],
            sparse=task.sparse,
            sparse_interval=task.sparse_interval,
            shared_mask=controls[MASK][task.name],
            int8=controls["int8"][task.name],
            int4=controls["int4"][task.name],
        )
        for task in report.tasks
    ]


def _measure(ours: Compiled, budget: int, progress: Progress) -> tuple[list[DemoSwitch], dict[str, float], str]:
    """Every cold switch beside what it replaces, figures of rows, and why a switch wasn't cold, else an empty text."""
    bundle = ours.bundle
    planned = {(cost.from_task, cost.to_task): cost.bytes for cost in all_switches(bundle, StorageModel())}
    theirs, dense, doubts = _baselines(bundle, ours.dense)
    files = [bundle.path / name for name in bundle.manifest.page_file_names()]
    with Engine(bundle, EngineConfig(budget, io_threads=IO_THREADS, rows=row_bytes(bundle))) as engine:
        with cold_read(files) as proof:
            timed = time_switches(engine, REPEATS, partial(progress, "switch"))
        direct = engine.report().direct_io
        of_rows = row_figures(engine)
    doubts += [doubt(proof)] if direct else ["this file system refuses direct I/O"]
    found = []
    for switch in timed:
        if switch.bytes != planned[switch.from_task, switch.to_task]:
            raise WeightpagerError(f"{switch.from_task} → {switch.to_task}: read other bytes than planned")
        found.append(
            DemoSwitch(
                from_task=switch.from_task,
                to_task=switch.to_task,
                bytes=switch.bytes,
                ms=switch.seconds * 1e3,
                gbps=switch.bytes / switch.load_seconds / 1e9 if switch.load_seconds else 0.0,
                whole_sparse_bytes=theirs[switch.to_task].paged_bytes,
                whole_sparse_ms=theirs[switch.to_task].paged_ms,
                own_checkpoint_bytes=theirs[switch.to_task].bytes,
                own_checkpoint_ms=theirs[switch.to_task].ms,
                dense_ms=dense * 1e3,
                raw_ms=None if switch.raw_seconds is None else switch.raw_seconds * 1e3,
            )
        )
    return found, of_rows, next(filter(None, doubts), "")


@dataclass(frozen=True)
class _OwnCheckpoint:
    """A task's own sparse checkpoint: bytes and medians of reading them, of its paged weights and of all it has."""

    paged_bytes: int
    paged_ms: float
    bytes: int
    ms: float


def _baselines(bundle: Bundle, dense: Path) -> tuple[dict[str, _OwnCheckpoint], float, list[str]]:
    """Each task's own sparse checkpoint, seconds of the dense one, and doubts."""
    found, doubts = {}, []
    with writing_to(bundle.path.parent), tempfile.TemporaryDirectory(dir=bundle.path.parent) as folder:
        beside = own_parameters(bundle)
        for task in bundle.tasks:
            reads: list[float] = []
            for extra in (0, beside[task]):
                with sparse_checkpoint(bundle, task, Path(folder), extra) as path:
                    seconds, doubted = time_whole_read(path, REPEATS, IO_THREADS)
                    reads += path.stat().st_size, 1e3 * seconds
                    doubts.append(doubted)
            found[task] = _OwnCheckpoint(int(reads[0]), reads[1], int(reads[2]), reads[3])
    seconds, doubted = time_whole_read(dense, REPEATS, IO_THREADS)
    return found, seconds, [*doubts, doubted]
