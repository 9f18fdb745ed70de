"""How fast memory is read by as many threads as the kernels use: the ceiling of every kernel."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from weightpager.doctor.machine import Bandwidth, memory_read_bandwidth
from weightpager.kernels.choice import NATIVE
from weightpager.machine.memory import Memory

_MOST = 256 << 20  # bytes that are read; no cache of a processor that this runs on holds a large part of them
_LEAST = 1 << 20


def probe_bytes(memory: Memory) -> int:
    """Bytes to measure with: enough to be out of cache, and no more than an eighth of what is usable."""
    usable = memory.usable_bytes
    return _MOST if usable is None else max(_LEAST, min(_MOST, usable // 8))


def kernel_read_bandwidth(total_bytes: int, threads: int, *, repeats: int = 5) -> Bandwidth:
    """How fast the native module reads memory that is in no cache; numpy, and a doubt, where there is no such module.

    Args:
        total_bytes: of the memory that is read.
        threads: that share it.
        repeats: runs, after one that isn't counted.
    """
    if not NATIVE:
        measured = memory_read_bandwidth(total_bytes, threads, repeats=repeats)
        return replace(measured, doubt="read by numpy, which may be slower than memory is")
    seconds = _native_seconds(np.ones(total_bytes, np.uint8), threads, repeats)
    return Bandwidth(total_bytes, total_bytes // threads, threads, seconds)


def _native_seconds(content: npt.NDArray[np.uint8], threads: int, repeats: int) -> tuple[float, ...]:
    from weightpager.kernels.native import read_memory  # only where the native module has been built

    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        read_memory(content, threads)
        seconds.append(time.perf_counter() - start)
    return tuple(seconds[1:])
