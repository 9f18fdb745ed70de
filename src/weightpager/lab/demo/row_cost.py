"""What rows on demand cost: held-out texts, one by one, as they come and again when their rows are in memory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from weightpager.answers.model import Inputs, TaskModel
from weightpager.engine import Engine
from weightpager.lab.demo.result import ROW_FAULTS
from weightpager.task_data.held_out import read_held_out

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
            first = _seconds(model, batch)
            end = engine.report().rows
            assert start is not None
            assert end is not None
            lookups, hits = lookups + end.lookups - start.lookups, hits + end.hits - start.hits
            # The quickest of several would be compared with one that isn't chosen: a difference without any fault.
            extra.append(first - median(_seconds(model, batch) for _ in range(3)))
    return {
        "rows.resident_share": before.resident / before.rows,
        "rows.hit_rate": hits / lookups,
        ROW_FAULTS: 1e3 * median(extra),
    }


def _texts(engine: Engine, task: str, file: Path) -> list[Inputs]:
    batches = read_held_out(engine.bundle.task(task), file, engine.reader(), engine.limits.vocab_size, 1)
    step = max(1, len(batches) // TEXTS)
    return [batches[number][0] for number in range(0, len(batches), step)][:TEXTS]


def _seconds(model: TaskModel, inputs: Inputs) -> float:
    start = time.perf_counter()
    model.logits(inputs)
    return time.perf_counter() - start
