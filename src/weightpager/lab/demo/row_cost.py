"""What rows on demand cost: held-out texts, one by one, as they come and again when their rows are in memory."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import torch
from torch import nn

from weightpager.compiler.data import load_eval
from weightpager.compiler.data.batch import Batch
from weightpager.engine import Engine

TEXTS = 40
"""Of each task."""


def row_figures(engine: Engine) -> dict[str, float]:
    """Share of look-ups that hit, and milliseconds that faults add to a forward of one text, by flat key.

    Nothing where the bundle has no rows on demand.
    """
    before = engine.report().rows
    if before is None:
        return {}
    lookups = hits = 0
    extra = []
    for task in engine.bundle.tasks:
        module = engine.activate(task)
        for batch in _texts(engine, task):
            start = engine.report().rows
            first = _seconds(module, batch)
            end = engine.report().rows
            assert start is not None
            assert end is not None
            lookups, hits = lookups + end.lookups - start.lookups, hits + end.hits - start.hits
            # The quickest of several would be compared with one that isn't chosen: a difference without any fault.
            extra.append(first - median(_seconds(module, batch) for _ in range(3)))
    return {
        "rows.resident_share": before.resident / before.rows,
        "rows.hit_rate": hits / lookups,
        "rows.forward_extra_ms_median": 1e3 * median(extra),
    }


def _texts(engine: Engine, task: str) -> list[Batch]:
    entry = engine.bundle.task(task)
    assert entry.eval is not None
    batches = load_eval(entry, Path(entry.eval.file), engine.tokenizer(), 1)
    step = max(1, len(batches) // TEXTS)
    return [batches[number] for number in range(0, len(batches), step)][:TEXTS]


def _seconds(module: nn.Module, batch: Batch) -> float:
    start = time.perf_counter()
    with torch.inference_mode():
        module(**batch.inputs)
    return time.perf_counter() - start
