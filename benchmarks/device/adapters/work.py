"""What every process with adapters does: it decodes with and without one, and swaps them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from statistics import median

import numpy as np
import numpy.typing as npt

from benchmarks.device.work import FIRST, peak_bytes

Grow = Callable[[npt.NDArray[np.int64]], Iterator[int]]
"""Forgets what was read, reads ids [tokens], and gives one token after the other."""

READ, DECODED, TURNS = 16, 64, 7


Swaps = Mapping[str, tuple[Sequence[str], int]]
"""By a figure's name, adapters that are used in turn, and how often each."""


def work(use: Callable[[str], object], grow: Grow, words: int, swaps: Swaps) -> None:
    """Print `FIRST` after the first token, and in the end as JSON what was measured.

    Args:
        use: makes an adapter, or none where its name is empty, the one that is decoded with.
        grow: of the model with the adapter in use.
        words: ids are below it.
        swaps: that are timed; those of the first round aren't, as they set up what stays.
    """
    rng = np.random.default_rng(0)
    first = next(iter(swaps.values()))[0][0]
    use(first)
    next(grow(rng.integers(0, words, READ)))
    print(FIRST, flush=True)
    taken: dict[str, list[float]] = {"": [], first: []}
    for _ in range(TURNS):
        for name, found in taken.items():  # one after the other, so that both meet the same noise
            use(name)
            found.append(_seconds_a_token(grow(rng.integers(0, words, READ))))
    rows = {"decode_plain_per_s": 1 / median(taken[""]), "decode_per_s": 1 / median(taken[first])}
    rows["speed_with_adapter"] = median(a / b for a, b in zip(*taken.values(), strict=True))
    for figure, (names, times) in swaps.items():
        taken_by_swaps = [_swap(use, name) for _ in range(times + 1) for name in names]
        rows[figure] = median(taken_by_swaps[len(names) :])
    json.dump(rows | {"peak_bytes": peak_bytes()}, sys.stdout)


def _seconds_a_token(tokens: Iterator[int]) -> float:
    next(tokens)
    start = time.perf_counter()
    for _ in islice(tokens, DECODED):
        pass
    return (time.perf_counter() - start) / DECODED


def _swap(use: Callable[[str], object], name: str) -> float:
    start = time.perf_counter()
    use(name)
    return 1e3 * (time.perf_counter() - start)
