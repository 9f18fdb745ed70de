"""What a process has resident after each step: ``python -m benchmarks.device.steps BUNDLE TASK BUDGET TEXT``."""

import json
import re
import sys
from importlib import import_module
from pathlib import Path


def resident() -> float:
    """Megabytes that the process has resident, pages of mapped files included."""
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return round(int(found[1]) * 1024 / 1e6, 1)


if __name__ == "__main__":
    bundle, task, budget, text = sys.argv[1:]
    steps = {"python": resident()}
    import_module("numpy")
    steps["numpy"] = resident()
    import_module("weightpager.bundle")
    steps["import bundle"] = resident()
    from weightpager.engine import Engine

    steps["import engine"] = resident()
    with Engine.from_pretrained(bundle, backend="native", budget=budget) as engine:
        engine.activate(task)
        steps["task entered"] = resident()
        engine.reader()
        steps["tokenizer read"] = resident()
        engine.predict(task, [text])
        steps["text answered"] = resident()
    json.dump(steps, sys.stdout, indent=1)
