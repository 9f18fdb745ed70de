"""A process of ours: ``python -m benchmarks.device.decoder.ours BACKEND BUNDLE TASK BUDGET``."""

import sys
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from benchmarks.device.decoder.work import work
from weightpager.answers.work import Sampling
from weightpager.engine import Engine
from weightpager.readers.tokenizer import open_tokenizer

if __name__ == "__main__":
    backend, bundle, task, budget = sys.argv[1:]
    with Engine.from_pretrained(bundle, backend=backend, budget=budget) as engine:
        engine.activate(task)
        model = engine.model(task)
        tokenizer = open_tokenizer(engine.bundle)  # in memory to the end, as llama.cpp has its own

        def grow(ids: npt.NDArray[np.int64]) -> Iterator[int]:
            """Token after token; an end that the model draws is no end here."""
            texts = model.grow(ids[None], np.ones_like(ids[None]), Sampling(temperature=0), 0)
            while texts.unread:
                texts.read_piece()
            drawn: list[int] = []

            def see(tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
                drawn.append(int(tokens[0]))
                return np.array([True])  # one at a time

            while True:
                texts.grow(1, see)
                yield drawn[-1]

        work(grow, model.vocab_size)
        tokenizer.decode([0])
