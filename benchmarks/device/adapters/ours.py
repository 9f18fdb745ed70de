"""A process of ours: ``python -m benchmarks.device.adapters.ours BUNDLE BUDGET``; the first task has no adapter."""

import sys

from benchmarks.device.adapters.work import work
from weightpager.engine import Engine
from weightpager_lab.contest.rivals.ours import likeliest

if __name__ == "__main__":
    bundle, budget = sys.argv[1:]
    with Engine.from_pretrained(bundle, backend="native", budget=budget) as engine:
        plain, *adapters = engine.bundle.tasks
        words = engine.model(plain).vocab_size
        now = [plain]

        def use(name: str) -> None:
            now[0] = name or plain
            engine.activate(now[0])

        # Two have room. More are read anew at each swap, past the page cache.
        swaps = {"ms_swap_in_memory": (adapters[:2], 200)}
        if len(adapters) > 3:
            swaps["ms_swap"] = (adapters[2:], 48)
        work(use, lambda ids: likeliest(engine.model(now[0]), ids[None]), words, swaps)
