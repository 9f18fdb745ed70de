"""Gradient descent as all of the compiler's trainings do it, without dropout."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weightpager.compiler.data import Batch, TaskData
from weightpager.compiler.recovery.rounding import Rounding
from weightpager.compiler.resume.journal import Journal
from weightpager.compiler.training.early_stopping import EarlyStopping, Validation
from weightpager.errors import CompileError
from weightpager.progress import StepProgress

_RISE = 0.1  # of the steps
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def alternating_batches(
    data: Mapping[str, TaskData], tasks: Sequence[str], size: int, seed: int
) -> Iterator[tuple[str, Batch]]:
    """Training batches of the tasks in turn, without end."""
    batches = {task: data[task].shuffled(size, seed) for task in tasks}
    while True:
        for task in tasks:
            yield task, next(batches[task])


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters by name that are trained at the same peak rate."""

    parameters: Mapping[str, nn.Parameter]
    rate: float


@dataclass(frozen=True)
class Schedule:
    """Which steps a training makes.

    Several trainings may share one rate that rises and falls over ``steps`` steps. This one makes step ``first``, and
    then every ``every``-th.
    """

    steps: int
    first: int = 0
    every: int = 1

    @property
    def own_steps(self) -> int:
        """Steps that the training makes."""
        return len(range(self.first, self.steps, self.every))

    def number(self, done: int) -> int:
        """The number, among all steps, of the step after ``done`` of the training's own."""
        return self.first + self.every * done


class Training:
    """What is learnt, from which batches, how far it has come, and the loop over its steps.

    The optimiser is AdamW. The rate rises over the first tenth of the steps and then falls to zero by a cosine.

    Attributes:
        watch: may end the training earlier, and chooses among the values on the way; None leaves it alone.
    """

    def __init__(
        self,
        groups: Sequence[ParameterGroup],
        turns: Iterator[tuple[str, Batch]],
        error: Callable[[str, Batch], Tensor],
        steps: int,
        validation: Validation | None = None,
        rounding: Rounding | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        """State a training; nothing is done yet.

        ``turns`` say whose batch each step takes, and ``error`` gives a task's loss on it; ``rounding`` is told after
        which step the training stands. ``schedule`` is None where all ``steps`` that share the rate are its own.
        """
        self.done = 0
        self._whole = True
        self._turns, self._error, self._steps = turns, error, steps
        self._rounding = rounding
        self._schedule = schedule or Schedule(steps)
        self._groups = [group for group in groups if group.parameters]
        self._named = {name: parameter for group in self._groups for name, parameter in group.parameters.items()}
        self._device = next(iter(self._named.values())).device
        self._optimizer = torch.optim.AdamW(
            [{"params": list(group.parameters.values())} for group in self._groups], weight_decay=0.01, fused=True
        )
        self.watch: EarlyStopping | None = None
        if validation is not None:
            self.watch = EarlyStopping(error, validation.to(self._device), steps)

    def run(self, journal: Journal, stage: str, progress: StepProgress) -> None:
        """Make all steps, from where the journal's stage stands. Ctrl-C between two steps is noted, too."""
        reached = journal.read(stage, self._fits)
        if reached is not None:
            self._restore(*reached)
        else:
            self._refresh_rounding()
            if self.watch is not None:
                self.watch.check(0, self._named)
        try:
            self._make_steps(journal, stage, progress)
        except KeyboardInterrupt:
            if self._whole and 0 < self.done < self._steps:
                with suppress(CompileError):
                    journal.write(stage, self.done, self.state())
            raise
        self._optimizer.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """What the journal keeps: the parameters by name, and while there are steps left the optimiser's moments.

        Of early stopping, once the best values are the parameters', only what tells that it was there.
        """
        state = {name: parameter.detach() for name, parameter in self._named.items()}
        goes_on = self.done < self._steps
        for name, parameter in self._named.items() if goes_on else ():
            state |= {f"{name}#{key}": value for key, value in self._optimizer.state[parameter].items()}
        if goes_on and self._rounding is not None:
            state |= self._rounding.state()
        return state if self.watch is None else state | self.watch.state(with_best=goes_on)

    def resumes(self, journal: Journal, stage: str) -> bool:
        """Whether `run` goes on from the journal, whatever the parameters' values are."""
        return journal.has(stage, self._fits)

    def _make_steps(self, journal: Journal, stage: str, progress: StepProgress) -> None:
        for step in range(self._steps):
            if self.done == self._steps:
                break
            task, batch = next(self._turns)
            if step < self.done:
                continue
            self._step(self._error(task, batch.to(self._device)), self._where(task))
            self._refresh_rounding()
            if self.watch is not None:
                if self.watch.check(self.done, self._named):
                    self.done = self._steps
                if self.done == self._steps:
                    self.watch.go_back(self._named)
            self._whole = True
            if journal.due() or self.done == self._steps:
                journal.write(stage, self.done, self.state())
            progress(self.done, self._steps)

    def _where(self, task: str) -> str:
        return f"tasks.{task}, step {self._schedule.number(self.done) + 1}"

    def _refresh_rounding(self) -> None:
        if self._rounding is not None:
            self._rounding.update(self.done)

    def _step(self, error: Tensor, where: str) -> None:
        """Go down the gradient of ``error``; ``where`` says in a message whose it is."""
        if not math.isfinite(error.item()):
            raise CompileError(f"{where}: training diverged; lower the learning rate")
        self._optimizer.zero_grad()
        torch.autograd.backward(error)
        share = rate_share(self._schedule.number(self.done), self._schedule.steps)
        self._whole = False  # from here to the end of the step, what Ctrl-C leaves is half of one
        for ours, theirs in zip(self._groups, self._optimizer.param_groups, strict=True):
            theirs["lr"] = share * ours.rate
        self._optimizer.step()
        self.done += 1

    def _fits(self, state: Mapping[str, Tensor]) -> bool:
        """Whether `_restore` finds all that it needs."""
        # A parameter that no task uses has no moments.
        moments = [sum(f"{name}#{key}" in state for key in _MOMENTS) for name in self._named]
        whole = state.keys() >= self._named.keys() and all(count in (0, len(_MOMENTS)) for count in moments)
        rounds = self._rounding is None or not any(moments) or self._rounding.fits(state)
        return whole and rounds and (self.watch is None or self.watch.fits(state, self._named))

    def _restore(self, done: int, state: Mapping[str, Tensor]) -> None:
        """Go on where another training of parameters of the same names stood after ``done`` steps."""
        self.done = done
        with torch.no_grad():
            for name, parameter in self._named.items():
                parameter.copy_(state[name])
                keys = [key for key in _MOMENTS if f"{name}#{key}" in state]
                moments = {key: state[f"{name}#{key}"].to(parameter.device, copy=True) for key in keys}
                if moments:
                    self._optimizer.state[parameter] = moments
        if self._rounding is not None and done < self._steps:
            self._rounding.restore(state)
        if self.watch is not None:
            self.watch.restore(state)


def rate_share(step: int, steps: int) -> float:
    """The rate of step number ``step``, from 0, as a share of its peak: up and down by half a cosine each."""
    at = (step + 0.5) / steps
    angle = at / _RISE if at < _RISE else 1 + (at - _RISE) / (1 - _RISE)
    return (1 - math.cos(math.pi * angle)) / 2
