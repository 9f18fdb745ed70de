"""`TorchRival`: a method whose tasks are torch modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from weightpager.answers.kinds import kind_of
from weightpager.answers.model import Inputs, Integers
from weightpager.backends.torch.kv_cache import CACHE, new_cache
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

    def write(self, task: str, text: Integers) -> Iterator[int]:
        return write(self.switch(task), text)


def tensors(task: TaskEntry, inputs: Inputs) -> dict[str, Any]:
    """Inputs as a task's torch module takes them."""
    found: dict[str, Any] = {name: torch.from_numpy(array) for name, array in inputs.items()}
    return found | {"use_cache": False} if kind_of(task.kind).writes else found


def forward(module: nn.Module, inputs: Mapping[str, Any]) -> None:
    """One forward pass."""
    with torch.inference_mode():
        module(**inputs)


def write(module: Any, text: Integers) -> Iterator[int]:
    """As `Rival.write`; nothing of a model that keeps anything but keys and values."""
    ids, cache = torch.from_numpy(text), new_cache(module.config)
    while cache is not None:
        with torch.inference_mode():
            logits = module(input_ids=ids, **{CACHE: cache}, use_cache=True).logits
        ids = logits[:, -1:].argmax(-1)
        yield int(ids)
