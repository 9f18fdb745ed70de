"""What every process of a vision model does: it answers pictures one by one, then reads batches of made-up pixels."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt

from benchmarks.device.work import FIRST, peak_bytes

BATCHES = {"1": 20, "16": 6}
"""Pictures, and how often."""


def work(
    answer: Callable[[str], object],
    forward: Callable[[npt.NDArray[np.float32]], object],
    shape: tuple[int, ...],
    pictures: Path,
) -> None:
    """Answer all pictures of a folder; print `FIRST` after the first, and what the rest took as JSON.

    Args:
        answer: to one picture, by its path.
        forward: of pixels [pictures, channels, height, width].
        shape: channels, height, width.
        pictures: the folder.
    """
    files = sorted(str(each) for each in pictures.rglob("*") if each.is_file())
    answer(files[0])
    print(FIRST, flush=True)
    taken = [_seconds(partial(answer, file)) for file in files[1:]]
    found = {"ms_per_picture": 1e3 * median(taken), "peak_bytes_of_pictures": peak_bytes()}
    rng = np.random.default_rng(0)
    for count, times in BATCHES.items():
        pixels = rng.normal(size=(int(count), *shape)).astype(np.float32)
        runs = [_seconds(partial(forward, pixels)) for _ in range(times)]
        found[f"ms_{count}"] = 1e3 * median(runs[times // 4 :])
    json.dump(found | {"peak_bytes": peak_bytes()}, sys.stdout)


def _seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start
