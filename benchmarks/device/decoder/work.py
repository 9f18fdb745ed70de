"""What every process of a language model does: made-up ids are read, and greedily gone on with."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median

import numpy as np
import numpy.typing as npt

from benchmarks.device.work import FIRST, peak_bytes

Grow = Callable[[npt.NDArray[np.int64]], Iterator[int]]
"""Forgets what was read, reads ids [tokens], and gives one token after the other."""

SHORT, PREFILL, DECODED = 16, 512, 128
CONTEXT = PREFILL + DECODED
"""Tokens that the longest text has in the end."""


def work(grow: Grow, words: int, turns: int = 3) -> None:
    """Print `FIRST` after the first token, and in the end as JSON what was measured.

    Args:
        grow: of the model.
        words: ids are below it.
        turns: how often each text is grown; medians are told.
    """
    rng = np.random.default_rng(0)
    next(grow(rng.integers(0, words, SHORT)))
    print(FIRST, flush=True)
    short = [_rates(grow, rng.integers(0, words, SHORT)) for _ in range(turns)]
    after_short = peak_bytes()
    long = [_rates(grow, rng.integers(0, words, PREFILL)) for _ in range(turns)]
    found = {
        "decode_per_s": median(decode for _, decode in short),
        "decode_after_prefill_per_s": median(decode for _, decode in long),
        "prefill_per_s": median(prefill for prefill, _ in long),
        "peak_bytes_short": after_short,
        "peak_bytes": peak_bytes(),
    }
    json.dump(found, sys.stdout)


def _rates(grow: Grow, ids: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Tokens a second: read, the first token included, and decoded behind it."""
    start = time.perf_counter()
    tokens = grow(ids)
    next(tokens)
    first = time.perf_counter()
    for _ in range(DECODED - 1):
        next(tokens)
    return len(ids) / (first - start), (DECODED - 1) / (time.perf_counter() - first)
