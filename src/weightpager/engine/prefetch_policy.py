"""What prefetch and eviction go by in an engine: the visits so far, and the bundle's transition matrix."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from weightpager.engine.opened.open_bundle import OpenBundle
from weightpager.runtime.history.task_monitor import TaskMonitor
from weightpager.runtime.prediction.planner import CallablePredictor, Planner
from weightpager.runtime.prediction.predictor import TransitionPredictor, replay
from weightpager.runtime.prediction.predictors import new_predictor
from weightpager.runtime.prefetch.expected_uses import ExpectedUses, expected_uses_after
from weightpager.runtime.prefetch.prefetcher import PrefetchPolicy
from weightpager.runtime.prefetch.trial import PrefetchTrial
from weightpager.runtime.prefetch.virtual_arena import VirtualArena
from weightpager.store import StorageModel


def prefetch_policy(
    opened: OpenBundle, monitor: TaskMonitor, planner: Planner | None, held: Iterable[str]
) -> PrefetchPolicy:
    """A policy made from the visits so far and the bundle's transition matrix.

    Args:
        opened: the bundle.
        monitor: knows the visits.
        planner: that knows the next task; None to learn it.
        held: tasks that never leave memory.
    """
    names, now = _names(opened), time.monotonic()
    learning = new_predictor(len(names), _prior(opened))
    predictor: TransitionPredictor = learning if planner is None else CallablePredictor(planner, names, learning)
    replay(predictor, monitor.visits(), names)
    if monitor.current is None:
        predictor.interrupt()  # the visits are those of an earlier run
    size = opened.residency.differential_pages * opened.bundle.page_bytes
    seconds = StorageModel().seconds(0, round(size))
    dwell = monitor.dwell_seconds()
    expected = ExpectedUses(predictor, monitor.followed(names), [dwell.get(name, ()) for name in names], seconds)
    current = opened.tasks.get(monitor.current or "")
    expected.current = None if current is None else current.number
    return PrefetchPolicy(expected, _trial(opened, held), size, now)


def uses_after(number: int, opened: OpenBundle, monitor: TaskMonitor) -> npt.NDArray[np.float64]:
    """Expected uses of each task, by number, once this one is entered, for eviction; 0 for tasks that have left."""
    tasks = opened.tasks
    numbers = [task.number for task in tasks.values()]
    uses = np.zeros(opened.residency.blocks.tasks)
    uses[numbers] = expected_uses_after(monitor.followed(list(tasks)), numbers.index(number))
    return uses


def _trial(opened: OpenBundle, held: Iterable[str]) -> PrefetchTrial:
    """A trial of prefetch under the present budget."""
    blocks, numbers = opened.residency.blocks, [opened.tasks[name].number for name in held]
    needs = [blocks.needs(task) for task in range(blocks.tasks)]
    pages = 1 + max((int(need[-1]) for need in needs if len(need)), default=0)
    return PrefetchTrial(
        lambda: VirtualArena(
            needs,
            pages,
            blocks.slots,
            opened.bundle.page_bytes,
            StorageModel(),
            opened.reads.span,
            numbers,
            reads=opened.reads_in_flight,
        )
    )


def _names(opened: OpenBundle) -> list[str]:
    """The name of each task's number, empty for tasks that have left."""
    names = [""] * opened.residency.blocks.tasks
    for name, task in opened.tasks.items():
        names[task.number] = name
    return names


def _prior(opened: OpenBundle) -> npt.NDArray[np.float64] | None:
    """The bundle's transition matrix, by the numbers of tasks; None where tasks have left since."""
    numbers = [task.number for task in opened.tasks.values()]
    if len(numbers) != opened.residency.blocks.tasks:
        return None
    prior = np.zeros((len(numbers), len(numbers)))
    prior[np.ix_(numbers, numbers)] = opened.bundle.manifest.transitions
    return prior
