"""Trainings of which each is one task's alone: here, where the journal is, or elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from weightpager.compiler.resume.journal import Journal
from weightpager.compiler.resume.workers import LOCAL, Done, Workers
from weightpager.progress import StepProgress

State = Mapping[str, Tensor]
"""What was trained, by name, as a journal keeps it."""


@dataclass(frozen=True)
class TaskTraining:
    """The training of one task.

    Attributes:
        stage: its name in the journal.
        steps: the number of its steps.
        train: makes the steps; a `functools.partial` of a function of a module.
        copies: how many times as much as it is made of it holds.
    """

    stage: str
    steps: int
    train: Callable[[Journal, StepProgress], State]
    copies: int


def each_trained(
    trainings: Mapping[str, TaskTraining], journal: Journal, progress: StepProgress, workers: Workers
) -> Iterator[Done[str, State]]:
    """Train tasks; each is given when it has been trained, and then it is in the journal.

    Args:
        trainings: by task; none sees what another changes.
        journal: where trainings stand. What has begun in it goes on here.
        progress: told (steps done, steps in all) of all together.
        workers: who trains.

    Raises:
        CompileError: a loss is no longer finite, or the storage refused the journal.
    """
    told, copies = _Sum(trainings, progress), max((of.copies for of in trainings.values()), default=1)
    here = [task for task, of in trainings.items() if workers.here or journal.knows(of.stage)]
    jobs = {task: partial(trainings[task].train, journal) for task in here}
    for done in (workers if workers.here else LOCAL).each(jobs, told.of, copies):
        told.ended(done.key)
        yield done
        del done  # a copy of what was trained
    others = {task: partial(of.train, Journal.none()) for task, of in trainings.items() if task not in here}
    for done in workers.each(others, told.of, copies):
        told.ended(done.key)
        journal.write(trainings[done.key].stage, trainings[done.key].steps, done.value, done.seconds)
        yield done
        del done


class _Sum:
    """Tells of the steps of all trainings as of one."""

    def __init__(self, trainings: Mapping[str, TaskTraining], progress: StepProgress) -> None:
        self._progress, self._steps = progress, {task: of.steps for task, of in trainings.items()}
        self._done = dict.fromkeys(trainings, 0)

    def of(self, task: str) -> StepProgress:
        """Told of one task's steps."""
        return partial(self._tell, task)

    def ended(self, task: str) -> None:
        """Count all steps of a task, which a journal may have had."""
        self._done[task] = self._steps[task]

    def _tell(self, task: str, done: int, _total: int) -> None:
        self._done[task] = done
        self._progress(sum(self._done.values()), sum(self._steps.values()))
