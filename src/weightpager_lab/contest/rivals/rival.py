"""What every method has in common, however it keeps its tasks."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightpager.answers.model import Inputs
from weightpager.bundle import Bundle, TaskEntry
from weightpager.errors import ConfigError


class Pace:
    """A slow disk of one's own: so many bytes in a second, over all threads.

    The kernel's throttle lets a tenth of a second's bytes pass at once, which is all that a short switch reads. Here
    reads take their turn one after the other; time in which nothing is read earns nothing.

    Attributes:
        bytes_per_second: of the disk.
    """

    def __init__(self, bytes_per_second: float) -> None:
        self.bytes_per_second = bytes_per_second
        self._lock = threading.Lock()
        self._free_at = 0.0

    @contextmanager
    def reading(self, count: int) -> Iterator[None]:
        """A read of so many bytes, which ends no earlier than they would have arrived."""
        with self._lock:
            arrived = self._free_at = max(self._free_at, time.perf_counter()) + count / self.bytes_per_second
        yield
        wait = arrived - time.perf_counter()
        if wait > 0:
            time.sleep(wait)


@contextmanager
def slow_engines(bytes_per_second: float) -> Iterator[None]:
    """Engines that are opened and used inside the ``with`` block read from such a disk; all else of a switch stays.

    Raises:
        ConfigError: the native module isn't there.
    """
    try:
        import weightpager.kernels._native as _native
    except ImportError as error:
        raise ConfigError("a slow disk is imitated by the native module: expected it, found no build of it") from error
    _native.imitate_storage(bytes_per_second)
    try:
        yield
    finally:
        _native.imitate_storage(0.0)


DTYPE = "bfloat16"
"""What all methods compute in, since checkpoints are shipped in it."""


@dataclass(frozen=True)
class Setting:
    """What a method is given.

    Attributes:
        bundle: a method of ours runs it, all others use its architecture and tables.
        tasks: those of it that are visited.
        folder: where `assets` has written the checkpoints.
        budget: bytes of memory for weights, for methods that can use more or less.
        threads: reads in flight.
        pace: slows reads down where the kernel can't; None where the disk is as it is.
    """

    bundle: Bundle
    tasks: tuple[str, ...]
    folder: Path
    budget: int
    threads: int
    pace: Pace | None = None

    @property
    def reading(self) -> Callable[[int], AbstractContextManager[None]] | None:
        """A context that slows down a read of so many bytes; None where reads aren't slowed down."""
        return None if self.pace is None else self.pace.reading


class Rival(ABC):
    """Serves all tasks from one process, one at a time. Imports torch only if it computes with it.

    Attributes:
        backend: what computes, "torch" or "native".
    """

    backend: str

    @abstractmethod
    def switch(self, task: str) -> Callable[..., Any]:
        """Make a task the one that runs; its module, with all weights in memory unless the method is lazy."""

    @abstractmethod
    def use_threads(self, count: int) -> None:
        """Compute with so many threads."""

    @abstractmethod
    def threads(self) -> int:
        """Threads that compute."""

    @abstractmethod
    def prepared(self, task: TaskEntry, inputs: Inputs) -> Mapping[str, Any]:
        """Inputs as modules take them; not timed."""

    @abstractmethod
    def run(self, module: Any, inputs: Mapping[str, Any]) -> None:
        """One forward pass of a module, on prepared inputs."""

    @abstractmethod
    def write(self, task: str, inputs: Inputs) -> Iterator[int]:
        """The tokens that a prompt goes on with, each the likeliest; the first step reads the prompt, too.

        Only for the current task, if it writes.
        """

    def forget(self) -> None:  # noqa: B027 - nothing, where all tasks share what is in memory
        """Keep nothing in memory that only tasks other than the current one need."""

    def files(self, task: str) -> list[Path]:  # noqa: ARG002 - the same for all
        """What a switch to a task may read."""
        return []

    def kernel_calls(self) -> dict[str, int] | None:
        """How often each paged kernel has run in this process; None where it runs none, or can't run anything else."""
        return None

    def row_fault_seconds(self) -> float | None:
        """Seconds so far that forward passes read rows of tables for; None where none come on demand."""
        return None

    @abstractmethod
    def weight_bytes(self) -> int:
        """Bytes of weights in memory now, tables and adapters included."""

    @abstractmethod
    def paged_bytes(self) -> int:
        """The part of `weight_bytes` that holds paged weights."""

    def close(self) -> None:  # noqa: B027 - nothing, where none are left
        """End threads, close files."""
