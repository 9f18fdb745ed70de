"""What the stages of a compile cost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from weightpager.compiler.resume.journal import Journal
from weightpager.machine.process_memory import forget_peak, peak_memory


@dataclass
class Clock:
    """Seconds and memory per stage; one stage at a time.

    Attributes:
        seconds: of all runs that a journal tells of.
        peak_memory: most bytes that the process held; stages in which the system didn't count have none.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory: dict[str, int] = field(default_factory=dict)

    def copy(self) -> Clock:
        """Another one that goes on from here."""
        return Clock(dict(self.seconds), dict(self.peak_memory))

    @contextmanager
    def stage(self, name: str, journal: Journal | None = None) -> Iterator[None]:
        """Measure what runs inside, and add the time of what it needn't do again since the journal has it."""
        start, earlier = time.perf_counter(), journal.earlier if journal else 0.0
        counted = forget_peak()
        yield
        spent = time.perf_counter() - start + (journal.earlier - earlier if journal else 0.0)
        self.seconds[name] = self.seconds.get(name, 0.0) + spent
        if counted and (peak := peak_memory()) is not None:
            self.peak_memory[name] = max(peak, self.peak_memory.get(name, 0))
