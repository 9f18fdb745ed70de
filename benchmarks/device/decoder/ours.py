"""A process of ours: ``python -m benchmarks.device.decoder.ours BACKEND BUNDLE TASK BUDGET``."""

import sys

from benchmarks.device.decoder.work import work
from weightpager.engine import Engine
from weightpager.readers.tokenizer import open_tokenizer
from weightpager_lab.contest.rivals.ours import likeliest

if __name__ == "__main__":
    backend, bundle, task, budget = sys.argv[1:]
    with Engine.from_pretrained(bundle, backend=backend, budget=budget) as engine:
        engine.activate(task)
        model = engine.model(task)
        tokenizer = open_tokenizer(engine.bundle)  # in memory to the end, as llama.cpp has its own
        work(lambda ids: likeliest(model, ids[None]), model.vocab_size)
        tokenizer.decode([0])
