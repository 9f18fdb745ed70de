"""One of our processes: ``python -m benchmarks.device.ours BACKEND BUNDLE BUDGET TEXTS TASK ...``."""

import sys
from pathlib import Path

import numpy as np

from benchmarks.device.work import work
from weightpager.engine import Engine


def _seconds_of_rows(engine: Engine) -> float:
    rows = engine.report().rows
    assert rows is not None
    return rows.fault_seconds


if __name__ == "__main__":
    backend, bundle, budget, texts, *tasks = sys.argv[1:]
    with Engine.from_pretrained(bundle, backend=backend, budget=budget) as engine:
        engine.activate(tasks[0])
        model = engine.model(tasks[0])
        has_rows = engine.report().rows is not None
        work(
            tasks,
            lambda task, text: engine.predict(task, [text]),
            lambda ids: engine.model(tasks[-1]).logits({"input_ids": ids, "attention_mask": np.ones_like(ids)}),
            model.vocab_size,
            Path(texts),
            (lambda: _seconds_of_rows(engine)) if has_rows else None,
        )
