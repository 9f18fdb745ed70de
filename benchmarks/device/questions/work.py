"""What every process does: it answers all questions about one frame after the other, then goes on with made-up ids."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from benchmarks.device.decoder.work import Grow
from benchmarks.device.work import FIRST, peak_bytes

PROMPT, DECODED = 80, 64
"""Tokens of a text that is gone on with, and how many follow."""

_WARM = 2
"""Frames that aren't counted."""


Figures = dict[str, float]


class Question(NamedTuple):
    task: str
    image: str
    prompt: str


Answer = Callable[[Question, int], str]
"""Answers a question in so many tokens at most."""


def read_frames(file: Path) -> list[list[Question]]:
    """The questions about each frame, of a file that ``benchmarks.device.questions`` wrote."""
    return [[Question(*each) for each in frame] for frame in json.loads(file.read_text(encoding="utf-8"))]


def work(
    answer: Answer, most: int, grow: Grow, words: int, frames: list[list[Question]], more: Callable[[], Figures] = dict
) -> None:
    """Print `FIRST` after the first answer, and in the end as JSON what was measured.

    Args:
        answer: to a question.
        most: tokens of an answer.
        grow: of the task that answered last.
        words: ids are below it.
        frames: the questions about each; a frame of its own for the first tokens follows each that is asked about.
        more: figures of the process's own, asked for behind the frames.
    """
    answer(frames[0][0], most)
    print(FIRST, flush=True)
    asked, alone = frames[1::2], frames[2::2]
    of_frames = [[_seconds(answer, each, most) for each in frame] for frame in asked]
    first_tokens = [_seconds(answer, frame[-1], 1) for frame in alone]
    counted = of_frames[_WARM:]
    found = more() | {
        "ms_first_question": 1e3 * median(taken[0] for taken in counted),
        "ms_later_question": 1e3 * median(each for taken in counted for each in taken[1:]),
        "ms_frame": 1e3 * median(sum(taken) for taken in counted),
        "ms_first_token": 1e3 * median(first_tokens[_WARM:]),
        "ms_decode": 1e3 * median(_decode(grow, words, seed) for seed in range(5)),
        "peak_bytes": peak_bytes(),
    }
    json.dump(found, sys.stdout)


def _seconds(answer: Answer, question: Question, most: int) -> float:
    start = time.perf_counter()
    answer(question, most)
    return time.perf_counter() - start


def _decode(grow: Grow, words: int, seed: int) -> float:
    """Seconds of a token behind a prompt."""
    tokens = grow(np.random.default_rng(seed).integers(0, words, PROMPT))
    next(tokens)
    start = time.perf_counter()
    for _ in islice(tokens, DECODED):
        pass
    return (time.perf_counter() - start) / DECODED
