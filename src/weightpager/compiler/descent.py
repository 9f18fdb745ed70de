"""Gradient descent as all of the compiler's trainings do it: AdamW, a rate that rises and falls once, no dropout."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from weightpager.compiler.data import TaskData
from weightpager.compiler.journal import Journal
from weightpager.errors import CompileError
from weightpager.evaluate import Batch, Progress

_CPU_FLAGS = Path("/proc/cpuinfo")
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
        progress: Progress,
    ) -> None:
        """Make all steps, from where the journal's stage stands.

        Args:
            turns: whose batch each step takes, from the first step on.
            error: of a task on a batch.
            journal: told now and then, and at the end, where the descent stands.
            stage: its name there.
            progress: told (steps done, steps in all).

        Raises:
            CompileError: an error is not finite; the storage refused the journal.
        """
        entry = journal.read(stage)
        if entry is not None:
            self.restore(entry[1], entry[0])
        for step in range(self._steps):
            task, batch = next(turns)
            if step < self.done:
                continue
            self.step(error(task, batch), f"tasks.{task}, step {step + 1}")
            if journal.due() or self.done == self._steps:
                journal.write(stage, self.done, self.state())
            progress(self.done, self._steps)
        self._optimizer.zero_grad()

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

    def restore(self, state: Mapping[str, Tensor], done: int) -> None:
        """Go on where another descent over parameters of the same names stood after ``done`` steps."""
        self.done = done
        with torch.no_grad():
            for name, parameter in self._named():
                parameter.copy_(state[name])
                moments = {key: state[f"{name}#{key}"].clone() for key in _MOMENTS if f"{name}#{key}" in state}
                if moments:
                    self._optimizer.state[parameter] = moments

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, parameter) for group in self._groups for name, parameter in group.parameters.items()]


def rate_share(step: int, steps: int) -> float:
    """The rate of step number ``step``, from 0, as a share of its peak: up and down by half a cosine each."""
    at = (step + 0.5) / steps
    angle = at / _RISE if at < _RISE else 1 + (at - _RISE) / (1 - _RISE)
    return (1 - math.cos(math.pi * angle)) / 2


def autocast() -> AbstractContextManager[None]:
    """Matrix products in bfloat16 where the processor has instructions for it; elsewhere it is slower than float32."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=_has_bfloat16())


@cache
def _has_bfloat16() -> bool:
    if not _CPU_FLAGS.is_file():
        return False
    flags = _CPU_FLAGS.read_text().split()
    return "avx512_bf16" in flags or "amx_bf16" in flags
