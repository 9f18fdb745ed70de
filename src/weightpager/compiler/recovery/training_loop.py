"""Gradient descent as all of the compiler's trainings do it: AdamW, a rate that rises and falls once, no dropout."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from weightpager.answers.evaluate import Batch
from weightpager.compiler.data.splits import TaskData
from weightpager.compiler.recovery.early_stopping import EarlyStopping
from weightpager.compiler.resume.journal import Journal
from weightpager.errors import CompileError
from weightpager.progress import Steps

_RISE = 0.1  # of the steps
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def in_turn(data: Mapping[str, TaskData], tasks: Sequence[str], size: int, seed: int) -> Iterator[tuple[str, Batch]]:
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


class Descent:
    """An optimiser and its schedule over a fixed number of steps.

    The rate rises over the first tenth of the steps and then falls to zero by a cosine.

    Attributes:
        done: steps made.
    """

    def __init__(self, groups: Sequence[ParameterGroup], steps: int) -> None:
        self.done = 0
        self._whole = True
        self._steps = steps
        self._groups = [group for group in groups if group.parameters]
        self._optimizer = torch.optim.AdamW(
            [{"params": list(group.parameters.values())} for group in self._groups], weight_decay=0.01, fused=True
        )

    def run(
        self,
        turns: Iterator[tuple[str, Batch]],
        error: Callable[[str, Batch], Tensor],
        journal: Journal,
        stage: str,
        progress: Steps,
        watch: EarlyStopping | None = None,
    ) -> None:
        """Make all steps, from where the journal's stage stands.

        Args:
            turns: whose batch each step takes, from the first step on.
            error: of a task on a batch.
            journal: told now and then, and at the end, where the descent stands.
            stage: its name there.
            progress: told (steps done, steps in all).
            watch: may end it earlier, and chooses among the values on the way.

        Ctrl-C between two steps is noted, too.

        Raises:
            CompileError: an error is not finite; the storage refused the journal.
        """
        entry = journal.read(stage, partial(self.fits, watched=watch is not None))
        if entry is not None:
            self._resume(*entry, watch)
        elif watch is not None:
            watch.ends(0, dict(self._named()))
        try:
            self._make_steps(turns, error, journal, stage, progress, watch)
        except KeyboardInterrupt:
            if self._whole and 0 < self.done < self._steps:
                with suppress(CompileError):
                    self._note(journal, stage, watch)
            raise
        self._optimizer.zero_grad()

    def _make_steps(
        self,
        turns: Iterator[tuple[str, Batch]],
        error: Callable[[str, Batch], Tensor],
        journal: Journal,
        stage: str,
        progress: Steps,
        watch: EarlyStopping | None,
    ) -> None:
        for step in range(self._steps):
            if self.done == self._steps:
                break
            task, batch = next(turns)
            if step < self.done:
                continue
            self.step(error(task, batch.to(self._device)), f"tasks.{task}, step {step + 1}")
            if watch is not None and watch.ends(self.done, dict(self._named())):
                self.done = self._steps
            if watch is not None and self.done == self._steps:
                watch.go_back(dict(self._named()))
            self._whole = True
            if journal.due() or self.done == self._steps:
                self._note(journal, stage, watch)
            progress(self.done, self._steps)

    def _note(self, journal: Journal, stage: str, watch: EarlyStopping | None) -> None:
        """Of early stopping only what tells that it was there, once the best values are the parameters'."""
        watched = {} if watch is None else watch.state(with_best=self.done < self._steps)
        journal.write(stage, self.done, self.state() | watched)

    def _resume(self, done: int, state: Mapping[str, Tensor], watch: EarlyStopping | None) -> None:
        self.restore(state, done)
        if watch is not None:
            watch.restore(state)

    @property
    def _device(self) -> torch.device:
        return next(iter(self._groups[0].parameters.values())).device

    def step(self, error: Tensor, where: str) -> None:
        """Go down the gradient of ``error``; ``where`` says in a message whose it is.

        Raises:
            CompileError: the error is not finite.
        """
        if not math.isfinite(error.item()):
            raise CompileError(f"{where}: training diverged; lower the learning rate")
        self._optimizer.zero_grad()
        torch.autograd.backward(error)
        share = rate_share(self.done, self._steps)
        self._whole = False  # from here to the end of the step, what Ctrl-C leaves is half of one
        for ours, theirs in zip(self._groups, self._optimizer.param_groups, strict=True):
            theirs["lr"] = share * ours.rate
        self._optimizer.step()
        self.done += 1

    def state(self) -> dict[str, Tensor]:
        """The parameters, and while there are steps left the optimiser's moments: what `restore` needs."""
        state = {name: parameter.detach() for name, parameter in self._named()}
        if self.done < self._steps:
            for name, parameter in self._named():
                state |= {f"{name}#{key}": value for key, value in self._optimizer.state[parameter].items()}
        return state

    def fits(self, state: Mapping[str, Tensor], *, watched: bool) -> bool:
        """Whether `run` can go on from a journal's entry; ``watched`` says whether early stopping goes on, too."""
        names = [name for name, _ in self._named()]
        # A parameter that no task uses has no moments.
        moments = (sum(f"{name}#{key}" in state for key in _MOMENTS) for name in names)
        whole = all(name in state for name in names) and all(count in (0, len(_MOMENTS)) for count in moments)
        return whole and (not watched or EarlyStopping.fits(state, names))

    def restore(self, state: Mapping[str, Tensor], done: int) -> None:
        """Go on where another descent over parameters of the same names stood after ``done`` steps."""
        self.done = done
        with torch.no_grad():
            for name, parameter in self._named():
                parameter.copy_(state[name])
                moments = {
                    key: state[f"{name}#{key}"].to(parameter.device, copy=True)
                    for key in _MOMENTS
                    if f"{name}#{key}" in state
                }
                if moments:
                    self._optimizer.state[parameter] = moments

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, parameter) for group in self._groups for name, parameter in group.parameters.items()]


def rate_share(step: int, steps: int) -> float:
    """The rate of step number ``step``, from 0, as a share of its peak: up and down by half a cosine each."""
    at = (step + 0.5) / steps
    angle = at / _RISE if at < _RISE else 1 + (at - _RISE) / (1 - _RISE)
    return (1 - math.cos(math.pi * angle)) / 2
