"""The demo from top to bottom: data → bundles → cold switches → result."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from weightpager.bundle import Bundle
from weightpager.bundle.footprint import footprint, smallest_budget
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
from weightpager.lab.demo.result import DemoResult, DemoSwitch, DemoTask, Resident
from weightpager.lab.samples import SampleUnavailable, minilm, prepare
from weightpager.lab.switching import doubt, sparse_checkpoint, time_switches, time_whole_read
from weightpager.progress import Progress
from weightpager.store import StorageModel, all_switches

EVAL_ITEMS = 500
"""Held-out items a task: five models are measured on them within the demo's five minutes."""

REPEATS = 5
IO_THREADS = 4


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
    budget = smallest_budget(ours.bundle)
    switches, note = _measure(ours, budget, progress)
    report = read_report(ours.bundle)
    return DemoResult(
        tasks=_tasks(report),
        switches=switches,
        memory=_memory(ours.bundle, report),
        overlap=overlap(ours.bundle).tolist(),
        mean_overlap=report.mean_overlap,
        mean_overlap_unaligned=ours.unaligned_overlap,
        duality_gap=report.duality_gap,
        budget=budget,
        sparsity=SPARSITY,
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


def _measure(ours: Compiled, budget: int, progress: Progress) -> tuple[list[DemoSwitch], str]:
    """Every cold switch beside what it replaces; and why one wasn't cold, else an empty text."""
    bundle = ours.bundle
    planned = {(cost.from_task, cost.to_task): cost.bytes for cost in all_switches(bundle, StorageModel())}
    whole, dense, doubts = _baselines(bundle, ours.dense)
    files = [bundle.path / name for name in bundle.manifest.page_file_names()]
    with Engine(bundle, EngineConfig(budget, io_threads=IO_THREADS)) as engine, cold_read(files) as proof:
        timed = time_switches(engine, REPEATS, partial(progress, "switch"))
        direct = engine.report().direct_io
    doubts += [doubt(proof)] if direct else ["this file system refuses direct I/O"]
    rows = []
    for switch in timed:
        if switch.bytes != planned[switch.from_task, switch.to_task]:
            raise WeightpagerError(f"{switch.from_task} → {switch.to_task}: read other bytes than planned")
        rows.append(
            DemoSwitch(
                from_task=switch.from_task,
                to_task=switch.to_task,
                bytes=switch.bytes,
                ms=switch.seconds * 1e3,
                gbps=switch.bytes / switch.load_seconds / 1e9 if switch.load_seconds else 0.0,
                whole_sparse_bytes=whole[switch.to_task][0],
                whole_sparse_ms=whole[switch.to_task][1] * 1e3,
                dense_ms=dense * 1e3,
            )
        )
    return rows, next(filter(None, doubts), "")


def _baselines(bundle: Bundle, dense: Path) -> tuple[dict[str, tuple[int, float]], float, list[str]]:
    """Bytes and seconds of each task's own sparse weights, seconds of the dense checkpoint, and doubts."""
    whole, doubts = {}, []
    with writing_to(bundle.path.parent), tempfile.TemporaryDirectory(dir=bundle.path.parent) as folder:
        for task in bundle.tasks:
            with sparse_checkpoint(bundle, task, Path(folder)) as path:
                seconds, found = time_whole_read(path, REPEATS, IO_THREADS)
                whole[task] = path.stat().st_size, seconds
                doubts.append(found)
    seconds, found = time_whole_read(dense, REPEATS, IO_THREADS)
    return whole, seconds, [*doubts, found]


def _memory(bundle: Bundle, report: CompileReport) -> list[Resident]:
    count = len(bundle.tasks)
    most = max(len(bundle.pages_of(task)) for task in bundle.tasks) * bundle.page_bytes
    switches = all_switches(bundle, StorageModel())
    mean_switch = sum(cost.bytes for cost in switches) // max(1, len(switches))
    checkpoints = sum(len(bundle.kept_locations(task)) * bundle.block_bytes for task in bundle.tasks)
    stored = len(bundle.pages) * bundle.page_bytes
    fixed = footprint(bundle)
    parameters = fixed.resident + fixed.private
    ours = _mean(task.sparse for task in report.tasks)
    rows = [
        ("weightpager, arena of one task", fixed.total, most, mean_switch, ours),
        ("weightpager, everything resident", fixed.total, stored, 0, ours),
        ("one sparse checkpoint per task, all resident", parameters, checkpoints, 0, ours),
        ("one sparse checkpoint per task, one resident", parameters, checkpoints // count, checkpoints // count, ours),
        *(
            (_CONTROLS[control.name], parameters, control.resident_bytes, 0, _mean(control.scores.values()))
            for control in sorted(report.controls, key=lambda control: control.resident_bytes)
        ),
    ]
    return [
        Resident(name=name, bytes=always + paged, paged_bytes=paged, mean_bytes_per_switch=load, mean_metric=metric)
        for name, always, paged, load, metric in rows
    ]


_CONTROLS = {
    MASK: "one shared mask",
    "int4": "dense model in int4",
    "int8": "dense model in int8",
    DENSE: "dense model",
}


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)
