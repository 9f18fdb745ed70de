"""A compile as it runs: who is told of it, where it is noted how far it is, and what it has cost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from weightpager.compiler.resume.journal import Journal
from weightpager.machine.process_memory import forget_peak, peak_memory
from weightpager.progress import Progress, silent


@dataclass
class Clock:
    """Seconds and memory per stage; one stage at a time.

    Attributes:
        seconds: of all runs that a journal tells of.
        peak_memory: most bytes that the process held; stages in which the system didn't count have none.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, journal: Journal) -> Iterator[None]:
        """Measure what runs inside, and add the time of what it needn't do again since the journal has it."""
        start, earlier = time.perf_counter(), journal.earlier
        counted = forget_peak()
        yield
        spent = time.perf_counter() - start + journal.earlier - earlier
        self.seconds[name] = self.seconds.get(name, 0.0) + spent
        if counted and (peak := peak_memory()) is not None:
            self.peak_memory[name] = max(peak, self.peak_memory.get(name, 0))


@dataclass(frozen=True)
class Run:
    """What all stages of a running compile use.

    Attributes:
        progress: told (stage, steps done, steps in all).
        journal: where stages note how far they are.
        clock: what the stages so far have cost.
    """

    progress: Progress = silent
    journal: Journal = field(default_factory=Journal.none)
    clock: Clock = field(default_factory=Clock)

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Measure what runs inside."""
        return self.clock.stage(name, self.journal)
