"""Accuracy through the bundle that is timed: measured again, or as its compile measured it."""

from __future__ import annotations

from weightpager.bundle import Bundle
from weightpager.bundle.held_out_places import held_out_file
from weightpager.bundle.report.compile_report import CompileReport, TaskScore
from weightpager.engine import Engine
from weightpager.evaluation.measure import measure
from weightpager.lab.contest.rivals.rival import DTYPE
from weightpager.progress import Progress


def scores(
    bundle: Bundle, report: CompileReport | None, *, again: bool, progress: Progress
) -> tuple[list[TaskScore], str]:
    """Every task's score and where it comes from; nothing where the bundle has no held-out data and no report.

    Args:
        bundle: of the tasks.
        report: of its compile, if it has one.
        again: whether to measure, where the held-out data is on this machine.
        progress: of that.
    """
    stated = [entry.eval for entry in bundle.tasks.values()]
    if again and all(data is not None and held_out_file(bundle, data) is not None for data in stated):
        with Engine.from_pretrained(bundle.path, dtype=DTYPE) as engine:
            return measure(engine, bundle.tasks, progress), "this run"
    return (report.tasks, "the compile") if report is not None else ([], "")
