"""`TorchRival`: a method whose tasks are torch modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from weightpager.answers.kinds import kind_of
from weightpager.answers.model import Inputs
from weightpager.bundle import TaskEntry
from weightpager.lab.contest.rivals.rival import Rival


class TorchRival(Rival):
    """Computes with torch."""

    backend = "torch"

    def use_threads(self, count: int) -> None:
        torch.set_num_threads(count)

    def threads(self) -> int:
        return torch.get_num_threads()

    def prepared(self, task: TaskEntry, inputs: Inputs) -> Mapping[str, Any]:
        return tensors(task, inputs)

    def run(self, module: Any, inputs: Mapping[str, Any]) -> None:
        forward(module, inputs)


def tensors(task: TaskEntry, inputs: Inputs) -> dict[str, Any]:
    """Inputs as a task's torch module takes them."""
    found: dict[str, Any] = {name: torch.from_numpy(array) for name, array in inputs.items()}
    return found | {"use_cache": False} if kind_of(task.kind).writes else found


def forward(module: nn.Module, inputs: Mapping[str, Any]) -> None:
    """One forward pass."""
    with torch.inference_mode():
        module(**inputs)
