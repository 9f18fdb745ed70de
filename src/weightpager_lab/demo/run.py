"""The demo from top to bottom: data → bundles → cold switches → result."""

from __future__ import annotations

import time
from pathlib import Path

from weightpager.bundle.report.compile_report import DENSE, MASK, CompileReport, read_report
from weightpager.bundle.report.page_statistics import overlap
from weightpager.progress import Progress
from weightpager.runtime.budget import smallest_budget
from weightpager_lab.demo.cold_switches import REPEATS, measure
from weightpager_lab.demo.compiled import ALIGNMENT, RECOVER_STEPS, SPARSITY, TRAINING_STEPS, compiled
from weightpager_lab.demo.result import DemoResult, DemoTask, budgets, memory_figures, switch_figures, verdict
from weightpager_lab.demo.table import row_bytes, rows
from weightpager_lab.machine_facts import describe
from weightpager_lab.samples import Missing, Sample, SampleUnavailable, minilm, prepare

EVAL_ITEMS = 300
"""Held-out items a task: eight models are measured on them within the demo's five minutes."""


def run_demo(cache: Path, progress: Progress) -> DemoResult:
    """Run the demo; a second run finds data and bundles in the cache and only measures again.

    Raises:
        SampleUnavailable: the model, or all of the tasks but one, can't be fetched, or the cache can't be written to.
    """
    start = time.perf_counter()
    model, samples, missing = fetched(cache, progress)
    ours = compiled(model, samples, cache, progress)
    budget = smallest_budget(ours.bundle, rows=row_bytes(ours.bundle))
    cold = measure(ours, {sample.name: sample.eval for sample in samples}, budget, progress)
    report = read_report(ours.bundle)
    memory = rows(ours.bundle, report, cold.switches, ours.family)
    figures = memory_figures(memory) | switch_figures(cold.switches) | cold.row_figures
    return DemoResult(
        tasks=_tasks(report),
        switches=cold.switches,
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
        cold=not cold.note,
        cold_note=cold.note,
        repeats=REPEATS,
        missing={task.name: task.reason for task in missing},
        compile_seconds=report.seconds,
        seconds=time.perf_counter() - start,
        machine=describe(),
        figures={key: float(f"{value:.5g}") for key, value in figures.items()},
        verdict=verdict(memory),
        budgets=budgets(memory),
        backend=report.backend,
        bundle=str(ours.bundle.path),
    )


def fetched(cache: Path, progress: Progress) -> tuple[Path, list[Sample], list[Missing]]:
    """The model's directory, the tasks whose data is here, and those whose isn't.

    Raises:
        SampleUnavailable: the model, or all of the tasks but one, can't be fetched.
    """
    progress("fetch model and data", 0, 1)
    model = minilm(cache)
    samples, missing = prepare(cache, eval_items=EVAL_ITEMS, report=lambda _line: None)
    if len(samples) < 2:
        reasons = "\n".join(f"  {lack.name}: {lack.reason}" for lack in missing)
        raise SampleUnavailable(f"expected two tasks to switch between, got {samples[0].name} alone:\n{reasons}")
    progress("fetch model and data", 1, 1)
    return model, samples, missing


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
