"""A process of ours: ``python -m benchmarks.device.adapters.ours BUNDLE BUDGET BYTES_PER_SECOND``.

The first task has no adapter. Storage gives so many bytes a second; 0 for as many as it can.
"""

import sys

import weightpager.kernels._native as native
from benchmarks.device.adapters.work import Swaps, work
from weightpager.engine import Engine
from weightpager_lab.contest.rivals.ours import likeliest

if __name__ == "__main__":
    bundle, budget, storage = sys.argv[1:]
    native.imitate_storage(float(storage))
    with Engine.from_pretrained(bundle, backend="native", budget=budget) as engine:
        plain, *adapters = engine.bundle.tasks
        words = engine.model(plain).vocab_size
        now = [plain]

        def use(name: str) -> None:
            now[0] = name or plain
            engine.activate(now[0])

        # Two have room. More are read anew at each swap.
        swaps: Swaps = {"ms_swap_in_memory": (adapters[:2], 100)}
        if len(adapters) > 3:
            swaps = {**swaps, "ms_swap": (adapters[2:], 3)}
        work(use, lambda ids: likeliest(engine.model(now[0]), ids[None]), words, swaps)
