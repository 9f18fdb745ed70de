"""What a compile found out, as tables for people."""

from __future__ import annotations

from weightpager.bundle.report.advice import Advice, few_items, heavy_losses
from weightpager.bundle.report.choice import Choice
from weightpager.bundle.report.compile_report import DENSE, CompileReport
from weightpager.cli.output import ends, enough, explain, measured, say, size, table

_NOT_COMPARED = {
    "none": "not compared with anything simpler: controls skipped (compare: none)",
    "few": "not compared with anything simpler: controls skipped, which so few held-out items could tell nothing of "
    "(--compare dense measures them all the same)",
}


def scores(title: str, report: CompileReport) -> None:
    """Print the tasks' metrics, with the intervals that hold the true value in 95 of 100 cases."""
    equal = next((control for control in report.controls if control.name == DENSE), None)
    longer = [] if equal is None else ["dense, trained longer (chosen on validation data)"]
    rows = []
    for task in report.tasks:
        trained = [] if equal is None else [measured(equal.scores[task.name], equal.intervals.get(task.name))]
        dense, sparse = measured(task.dense, task.dense_interval), measured(task.sparse, task.sparse_interval)
        rows.append([task.name, task.metric, dense, *trained, sparse, f"{task.density:.2f}", task.items])
    table(title, ["task", "metric", "dense", *longer, "sparse", "density", "held-out items"], rows)
    if any(task.sparse_interval is not None for task in report.tasks):
        explain("brackets")


def advice(found: Advice | None, report: CompileReport) -> None:
    """Print the ways to serve the tasks by memory, and what to use in words; or that it was not to be compared."""
    if found is None:
        for line in (_NOT_COMPARED.get(report.compare or ""), heavy_losses(report), few_items(report)):
            if line:
                say(line)
        return
    rows = [
        [
            choice.name,
            size(choice.resident_bytes),
            "other tools" if choice.budget is None else enough(choice.budget),
            size(choice.switch_bytes),
            _interval(f"{choice.loss:.1f}", choice),
        ]
        for choice in found.choices
    ]
    table(
        "what else could do the job", ["", "paged weights", "needs --budget", "per switch", "loss against dense"], rows
    )
    say(found.words)


def _interval(loss: str, choice: Choice) -> str:
    return loss if choice.interval is None else f"{loss} ({ends(choice.interval, 1)})"
