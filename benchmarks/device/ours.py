"""One of our processes: ``python -m benchmarks.device.ours BACKEND BUNDLE TASK BUDGET TEXTS``."""

import sys
from pathlib import Path

import numpy as np

from benchmarks.device.work import work
from weightpager.engine import Engine

if __name__ == "__main__":
    backend, bundle, task, budget, texts = sys.argv[1:]
    with Engine.from_pretrained(bundle, backend=backend, budget=budget) as engine:
        engine.activate(task)
        model = engine.model(task)
        work(
            lambda text: engine.predict(task, [text]),
            lambda ids: model.logits({"input_ids": ids, "attention_mask": np.ones_like(ids)}),
            model.vocabulary,
            Path(texts),
        )
