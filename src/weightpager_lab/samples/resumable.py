"""Training that goes on where a killed process stopped, to the same bits."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Workshop:
    """A directory for what a long training has reached so far.

    Attributes:
        folder: created when something is kept; the caller removes it in the end.
        seconds: between two writes of a stage's state.
        report: called with a line of text now and then.
    """

    folder: Path
    seconds: float
    report: Callable[[str], None]

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """What ``make`` gave once, of tensors and plain containers of them."""
        path = self.folder / f"{name}.pt"
        if not path.exists():
            _save(make(), path)
        return torch.load(path, mmap=True, weights_only=True)

    def train(self, stage: Stage) -> None:
        """All steps of a stage that haven't been taken yet; its parameters are changed in place."""
        path = self.folder / f"{stage.name}.pt"
        values = [value for group in stage.groups for value in group.values]
        groups = [{"params": list(group.values), "lr": group.rate, "peak": group.rate} for group in stage.groups]
        optimizer = torch.optim.AdamW(groups, weight_decay=stage.decay, fused=True)
        first = _resume(path, values, optimizer)
        losses: list[float] = []
        saved = began = time.monotonic()
        for step in range(first, stage.steps):
            share = rate_share(step, stage.steps)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share
            # Of its own for each step, so that a resumed training draws what an undisturbed one would have drawn.
            loss = stage.loss(torch.Generator().manual_seed(stage.seed * 1_000_003 + step))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(values, 1.0)
            optimizer.step()
            losses.append(loss.item())
            done = step + 1
            if done % stage.every == 0 or done == stage.steps:
                each, mean = (time.monotonic() - began) / len(losses), sum(losses[-stage.every :]) / stage.every
                self.report(f"{stage.name}: step {done} of {stage.steps}, loss {mean:.3f}, {each:.2f} s a step")
            if done % stage.look_every == 0 or done == stage.steps:
                self.report(f"{stage.name}: step {done} of {stage.steps}, {stage.look()}")
            if time.monotonic() - saved > self.seconds or done == stage.steps:
                state = {"step": done, "values": [value.detach() for value in values]}
                _save({**state, "optimizer": optimizer.state_dict() if done < stage.steps else None}, path)
                saved = time.monotonic()


@dataclass(frozen=True)
class Group:
    """Parameters with a peak rate of their own."""

    values: Sequence[nn.Parameter]
    rate: float


@dataclass(frozen=True)
class Stage:
    """One part of a training.

    Attributes:
        name: of its file and in reports.
        groups: what is trained.
        steps: of AdamW.
        loss: of a step, which draws whatever it draws from the given generator.
        look: says in words how good the model is, without changing anything.
        seed: of the steps' generators.
        every, look_every: steps between two reports, and between two looks.
        decay: of AdamW.
    """

    name: str
    groups: Sequence[Group]
    steps: int
    loss: Callable[[torch.Generator], Tensor]
    look: Callable[[], str]
    seed: int
    every: int = 20
    look_every: int = 100
    decay: float = 0.01


def rate_share(step: int, steps: int) -> float:
    """Of the peak rate: it rises over a twentieth of the steps and falls to zero by a cosine."""
    rise = max(1.0, steps / 20)
    return min(1.0, (step + 1) / rise) * (1 + math.cos(math.pi * max(0.0, (step - rise) / (steps - rise)))) / 2


def _resume(path: Path, values: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    """The next step."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    with torch.no_grad():
        for value, saved in zip(values, state["values"], strict=True):
            value.copy_(saved)
    if state["optimizer"] is not None:
        optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _save(content: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent, prefix=f".{path.stem}-", delete=False) as file:
        try:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
