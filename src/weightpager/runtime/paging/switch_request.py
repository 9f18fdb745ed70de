"""What a switch is asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightpager.runtime.paging.pager import Priority


@dataclass(frozen=True)
class Request:
    """A task that is wanted in the arena.

    Attributes:
        task: its number.
        name: for errors.
        leaving: number of the task that is left for it, None if none is.
        give_up: called once, if both don't fit together, when the other can be kept no longer: it releases it.
        deadline: when waiting for other tasks to leave or for another switch ends, by `time.monotonic`; None never
            waits for a task, and as long as it takes for a switch.
        wait: whether to return only when all pages are there.
        priority: of its reads.
        reuse: gives the expected uses of each task in the near future [tasks], for eviction.
    """

    task: int
    name: str
    leaving: int | None = None
    give_up: Callable[[], None] = lambda: None
    deadline: float | None = None
    wait: bool = True
    priority: Priority = Priority.ON_DEMAND
    reuse: Callable[[], npt.NDArray[np.floating]] | None = None


def seconds_until(deadline: float | None) -> float | None:
    """What is left until a deadline by `time.monotonic`, as a timeout that `threading` takes; None without one."""
    return None if deadline is None else min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
