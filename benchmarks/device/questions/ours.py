"""One of our processes: ``python -m benchmarks.device.questions.ours BACKEND BUNDLE BUDGET FRAMES``."""

import sys
from pathlib import Path

from benchmarks.device.questions.work import Question, read_frames, work
from weightpager.engine import Engine
from weightpager_lab.contest.rivals.ours import likeliest

if __name__ == "__main__":
    backend, bundle, budget, file = sys.argv[1:]
    frames = read_frames(Path(file))
    with Engine.from_pretrained(bundle, backend=backend, budget=budget) as engine:

        def answer(question: Question, most: int) -> str:
            task, image, prompt = question
            return engine.generate(task, prompt, images=[image], max_new_tokens=most).text

        last = frames[0][-1].task
        generation = engine.bundle.task(last).generation
        assert generation is not None
        words = engine.model(last).vocab_size

        def grow(ids):  # type: ignore[no-untyped-def]
            engine.activate(last)
            return likeliest(engine.model(last), ids[None])

        work(answer, generation.max_new_tokens, grow, words, frames)
