"""What the switches of a trace wait for, and read, under one policy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Waits:
    """What any policy is judged by.

    Attributes:
        policy: its name.
        mean_ms, median_ms, p95_ms, p99_ms: statistics of the waits of all switches.
        without_wait: share of the switches that found all in memory.
        bytes_per_switch: bytes loaded, waited for or not.
    """

    policy: str
    mean_ms: float
    median_ms: float
    p95_ms: float
    p99_ms: float
    without_wait: float
    bytes_per_switch: float

    @staticmethod
    def of(policy: str, seconds: npt.NDArray[np.float64], loaded: int) -> Waits:
        """The statistics of waits, one for each switch, which loaded so many bytes together."""
        times = [seconds.mean(), *np.percentile(seconds, [50, 95, 99])]
        mean, median, p95, p99 = (round(1e3 * float(each), 3) for each in times)
        return Waits(policy, mean, median, p95, p99, float(np.mean(seconds == 0)), loaded / len(seconds))
