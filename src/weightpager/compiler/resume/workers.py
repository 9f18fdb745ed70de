"""Who does what a compile does for each task by itself: this process, a task after the other, or workers elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from weightpager.progress import StepProgress

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

Job = Callable[[StepProgress], Value]
"""Does one task's share of a stage, tells of its steps, and returns what was found.

It may run in another process, on another machine: it is a `functools.partial` of a function of a module, so that it can
be pickled, it opens no files of this machine, and it asks nothing of its process but what `Arithmetic` names.
"""


@dataclass(frozen=True)
class Done(Generic[Key, Value]):
    """A job that has ended.

    Attributes:
        key: the job's key.
        value: what it returned.
        seconds: the time that it took.
    """

    key: Key
    value: Value
    seconds: float


class Workers(Protocol):
    """Does jobs that need nothing of each other. A cluster's are in ``weightpager.ray``."""

    @property
    def here(self) -> bool:
        """Whether jobs run in this process: they see its objects themselves, not copies, and may write its journal."""

    def each(
        self, jobs: Mapping[Key, Job[Value]], told: Callable[[Key], StepProgress], copies: int
    ) -> Iterator[Done[Key, Value]]:
        """Do all jobs; each is given as soon as it has ended, in any order.

        Args:
            jobs: by any key.
            told: gives, for a job's key, who is told of its steps, in this process.
            copies: how many times as much as a job is made of it holds at most, itself included.

        Raises:
            WeightpagerError: a job did; of several the first one's. All before it are given.
        """


class LocalWorkers:
    """Does jobs in this process, in their order."""

    here = True

    def each(
        self,
        jobs: Mapping[Key, Job[Value]],
        told: Callable[[Key], StepProgress],
        copies: int,  # noqa: ARG002
    ) -> Iterator[Done[Key, Value]]:
        """Implements `Workers.each`. Nothing is held of a job that has ended."""
        for key, job in jobs.items():
            start = time.perf_counter()
            yield Done(key, job(told(key)), time.perf_counter() - start)


LOCAL = LocalWorkers()
