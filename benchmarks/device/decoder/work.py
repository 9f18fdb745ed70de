"""What every process of a language model does: made-up ids are read, and greedily gone on with."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import NamedTuple

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
    short = [_grown(grow, rng.integers(0, words, SHORT)) for _ in range(turns)]
    after_short = peak_bytes()
    long = [_grown(grow, rng.integers(0, words, PREFILL)) for _ in range(turns)]
    found = {
        "decode_per_s": median(each.decode.per_s for each in short),
        "decode_after_prefill_per_s": median(each.decode.per_s for each in long),
        "prefill_per_s": median(each.read.per_s for each in long),
        "cpu_ms_decode": median(each.decode.cpu_ms for each in short),
        "cpu_ms_decode_after_prefill": median(each.decode.cpu_ms for each in long),
        "cpu_ms_prefill": median(each.read.cpu_ms for each in long),
        "peak_bytes_short": after_short,
        "peak_bytes": peak_bytes(),
    }
    json.dump(found, sys.stdout)


class _Pace(NamedTuple):
    """Tokens a second, and the processor's milliseconds for one, all threads together."""

    per_s: float
    cpu_ms: float


class _Grown(NamedTuple):
    """What reading took, the first token included, and decoding behind it."""

    read: _Pace
    decode: _Pace


def _grown(grow: Grow, ids: npt.NDArray[np.int64]) -> _Grown:
    tokens = grow(ids)
    return _Grown(_pace(tokens, 1, len(ids)), _pace(tokens, DECODED - 1, DECODED - 1))


def _pace(tokens: Iterator[int], steps: int, counted: int) -> _Pace:
    """Of so many steps, in which so many tokens are read or drawn."""
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        next(tokens)
    return _Pace(counted / (time.perf_counter() - start), 1e3 * (time.process_time() - cpu) / counted)
