"""What every process does; `ours` is asked about frames besides."""

from __future__ import annotations

import time
from collections.abc import Callable

SIDE, SHOWN = 448, 8
"""Pixels of a frame's side, and how many frames are shown."""

LENGTH, WORDS = 260, 4
"""Tokens of a text that is as long as a question about a frame, and how many of them the question's words are."""

DECODED = 16


def ms(do: Callable[[], object]) -> float:
    """Milliseconds that something takes."""
    start = time.perf_counter()
    do()
    return 1e3 * (time.perf_counter() - start)
