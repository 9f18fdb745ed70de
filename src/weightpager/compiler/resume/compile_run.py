"""A compile as it runs: who is told of it, where it is noted how far it is, and what it has cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.resume.journal import Journal
from weightpager.compiler.resume.workers import LOCAL, Workers
from weightpager.machine.process_memory import forget_peak, give_back, peak_memory
from weightpager.progress import Progress, StepProgress, silent


@dataclass
class CompileRun:
    """What all stages of a running compile use; one stage at a time.

    Attributes:
        progress: told (stage, steps done, steps in all).
        journal: where stages note how far they are.
        expect: told the stages that will come, each with its work, as soon as it can be estimated.
        seconds: the time that each stage took, in all runs that the journal tells of.
        peak_memory: most bytes that the process held in a stage; a stage in which the system didn't count has none.
        workers: those who do what is done for each task by itself.
        memory_bound: bytes that each stage was said to take at most, before the first one; those apart that come and go
            as memory allows.
    """

    progress: Progress = silent
    journal: Journal = field(default_factory=Journal.none)
    expect: Callable[[Mapping[str, float]], None] = silent
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory: dict[str, int] = field(default_factory=dict)
    memory_bound: dict[str, int] = field(default_factory=dict)
    workers: Workers = LOCAL

    def workers_on(self, source: DenseModel) -> Workers:
        """Who works on a source's tasks. What lies in files of this machine, for want of memory, is worked on here."""
        return self.workers if source.scratch.folder is None else LOCAL

    @contextmanager
    def stage(self, name: str, *, one_step: bool = False) -> Iterator[None]:
        """Measure what runs inside, and add the time of what it needn't do again since the journal has it.

        Args:
            name: of the stage.
            one_step: tell of its begin and its end, as nothing inside tells of steps.
        """
        told: StepProgress = partial(self.progress, name) if one_step else silent
        told(0, 1)
        start, earlier = time.perf_counter(), self.journal.earlier
        give_back()
        counted = forget_peak()
        yield
        told(1, 1)
        spent = time.perf_counter() - start + self.journal.earlier - earlier
        self.seconds[name] = self.seconds.get(name, 0.0) + spent
        if counted and (peak := peak_memory()) is not None:
            self.peak_memory[name] = max(peak, self.peak_memory.get(name, 0))
