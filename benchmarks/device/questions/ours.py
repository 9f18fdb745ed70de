"""One of our processes: ``python -m benchmarks.device.questions.ours BACKEND BUNDLE BUDGET FRAMES``."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt

from benchmarks.device.questions.work import Figures, Question, read_frames, work
from weightpager.engine import Engine
from weightpager_lab.contest.rivals.ours import likeliest

_WORD = " the"
"""A token of its own, as often as a picture has places: a text as long as a question about a picture."""


def _first_token_ms(engine: Engine, task: str, prompt: str, images: list[str]) -> float:
    start = time.perf_counter()
    engine.generate(task, prompt, images, max_new_tokens=1)
    return 1e3 * (time.perf_counter() - start)


def _later(engine: Engine, frames: list[list[Question]]) -> Figures:
    """The first token of questions about a frame that another one was about, and of texts as long without a picture."""
    pictures = engine.bundle.pictures
    assert pictures is not None
    asked, alone = [], []
    for first, *others in frames[-8:]:
        _first_token_ms(engine, first.task, first.prompt, [first.image])
        for task, image, prompt in others:
            asked.append(_first_token_ms(engine, task, prompt, [image]))
            alone.append(_first_token_ms(engine, task, _WORD * pictures.tokens + prompt, []))
    return {"ms_later_first_token": median(asked), "ms_text_first_token": median(alone)}


def _runs_of_the_tower(engine: Engine) -> int:
    features = engine.report().features
    assert features is not None
    return features.misses


if __name__ == "__main__":
    backend, bundle, budget, file = sys.argv[1:]
    frames = read_frames(Path(file))
    with Engine.from_pretrained(bundle, backend=backend, budget=budget) as engine:

        def answer(question: Question, most: int) -> str:
            task, image, prompt = question
            return engine.generate(task, prompt, [image], max_new_tokens=most).label

        def more() -> Figures:
            runs = _runs_of_the_tower(engine) / len(frames)  # of the frames so far each was seen once
            return {"runs_of_the_tower": runs, **_later(engine, frames)}

        last = frames[0][-1].task
        generation = engine.bundle.task(last).generation
        assert generation is not None

        def grow(ids: npt.NDArray[np.int64]) -> Iterator[int]:
            engine.activate(last)
            return likeliest(engine.model(last), ids[None])

        work(answer, generation.max_new_tokens, grow, engine.model(last).vocab_size, frames, more)
