"""One of our processes: ``python -m benchmarks.device.images.ours BACKEND BUNDLE TASK BUDGET PICTURES SIZE``."""

import sys
from pathlib import Path

from benchmarks.device.images.work import work
from weightpager.engine import Engine

if __name__ == "__main__":
    backend, bundle, task, budget, pictures, size = sys.argv[1:]
    with Engine.from_pretrained(bundle, backend=backend, budget=budget) as engine:
        engine.activate(task)
        model = engine.model(task)
        work(
            lambda file: engine.predict(task, [file]),
            lambda pixels: model.logits({"pixel_values": pixels}),
            (3, int(size), int(size)),
            Path(pictures),
        )
