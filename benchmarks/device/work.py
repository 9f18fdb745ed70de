"""What every process does: it answers texts one at a time, then reads batches of made-up ids."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt

Forward = Callable[[npt.NDArray[np.int64]], object]
SHAPES = {"1x16": (1, 16, 100), "16x64": (16, 64, 12)}
"""Texts, tokens, and how often."""

FIRST = "first"
"""The line that says that there is an output."""


Answer = Callable[[str, str], object]
"""A task's answer to a text."""


def work(
    tasks: Sequence[str],
    answer: Answer,
    forward: Forward,
    words: int,
    texts: Path,
    seconds_of_rows: Callable[[], float] | None = None,
) -> None:
    """Answer all texts of a file, a line each; print `FIRST` after the first, and what the rest took as JSON.

    Args:
        tasks: each answers as many texts, one task after the other.
        answer: to one text.
        forward: of ids, int64 [texts, tokens], by the task that answered last.
        words: ids are below it.
        texts: the file.
        seconds_of_rows: that reads of embedding rows have added until now; None if none are read on demand.
    """
    lines = texts.read_text(encoding="utf-8").splitlines()
    answer(tasks[0], lines[0])
    print(FIRST, flush=True)
    others = len(lines) - 1
    before = 0.0 if seconds_of_rows is None else seconds_of_rows()
    start = time.perf_counter()
    for number, line in enumerate(lines[1:], 1):
        answer(tasks[number * len(tasks) // len(lines)], line)
    found = {"ms_per_text": 1e3 * (time.perf_counter() - start) / others, "peak_bytes_of_texts": peak_bytes()}
    if seconds_of_rows is not None:
        found["ms_of_rows_per_text"] = 1e3 * (seconds_of_rows() - before) / others
    found |= {f"ms_{name}": 1e3 * _seconds(forward, words, *shape) for name, shape in SHAPES.items()}
    json.dump(found | {"peak_bytes": peak_bytes()}, sys.stdout)


def peak_bytes() -> int:
    """The most that the process has had resident, pages of mapped files included.

    Read here, as a rival's process must not load anything of ours.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _seconds(forward: Forward, words: int, texts: int, tokens: int, times: int) -> float:
    rng = np.random.default_rng(0)
    taken = []
    for _ in range(times):
        ids = rng.integers(0, words, (texts, tokens))
        start = time.perf_counter()
        forward(ids)
        taken.append(time.perf_counter() - start)
    return median(taken[times // 4 :])
