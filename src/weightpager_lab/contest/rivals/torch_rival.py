"""`TorchRival`: a method whose tasks are torch modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from weightpager.answers.model import Inputs
from weightpager.backends.task_parts import Placed, TaskParts
from weightpager.backends.torch.architecture import empty_module, full_name, read_config
from weightpager.backends.torch.generation import CACHE, new_cache
from weightpager.backends.torch.parameters import Tensors
from weightpager.backends.torch.task_module import assign, build, route
from weightpager.bundle import BlockTable, Bundle, TaskEntry
from weightpager.runtime.paging.residency import TaskGate
from weightpager.store.block_reader import read_low_rank
from weightpager_lab.contest.rivals.parameters import put_into, wide
from weightpager_lab.contest.rivals.rival import Rival


class TorchRival(Rival):
    backend = "torch"

    def use_threads(self, count: int) -> None:
        torch.set_num_threads(count)

    def threads(self) -> int:
        return torch.get_num_threads()

    def prepared(self, task: TaskEntry, inputs: Inputs) -> Mapping[str, Any]:
        return tensors(task, inputs)

    def run(self, module: Any, inputs: Mapping[str, Any]) -> None:
        forward(module, inputs)

    def write(self, task: str, inputs: Inputs) -> Iterator[int]:
        return write(self.switch(task), inputs)


def tensors(task: TaskEntry, inputs: Inputs) -> dict[str, Any]:
    """Inputs as a task's torch module takes them."""
    found: dict[str, Any] = {name: torch.from_numpy(array) for name, array in inputs.items()}
    return found | {"use_cache": False} if task.writes else found


def forward(module: nn.Module, inputs: Mapping[str, Any]) -> None:
    with torch.inference_mode():
        module(**inputs)


def write(module: Any, inputs: Inputs) -> Iterator[int]:
    """As `Rival.write`; nothing of a model that keeps anything but keys and values."""
    given = {name: torch.from_numpy(array) for name, array in inputs.items() if name != "attention_mask"}
    cache = new_cache(module.config)
    while cache is not None:
        with torch.inference_mode():
            logits = module(**given, **{CACHE: cache}, use_cache=True).logits
        ids = logits[:, -1:].argmax(-1)
        given = {"input_ids": ids}
        yield int(ids)


def dense_module(bundle: Bundle, task: str, values: Mapping[str, Tensor]) -> nn.Module:
    """A task's ordinary module; its parameters are these tensors, not copies. Routers pass over what it has dropped."""
    module = empty_module(read_config(bundle), bundle.task(task))
    route(module, task, bundle.tables(task))
    assign_values(module, values, task)
    return module


def assign_values(module: nn.Module, values: Mapping[str, Tensor], task: str) -> None:
    """Give a module its parameters by canonical name."""
    assign(module, {full_name(module, name): value for name, value in values.items()}, task)


def sparse_module(
    bundle: Bundle,
    task: str,
    tables: Mapping[str, BlockTable],
    values: Mapping[str, Tensor],
    arena: Tensor,
    page_table: Tensor,
) -> nn.Module:
    """A task's module with paged layers, which its caller may run whenever the arena holds its pages.

    Args:
        bundle: that the architecture is taken from.
        task: whose it is.
        tables: of its paged weights, in terms of the page table's pages.
        values: its other parameters, by canonical name; tables may be in few bits.
        arena: uint8 [slots, page_bytes].
        page_table: int32 [pages].
    """
    gate = TaskGate(task)
    gate.hold()
    parameters: Tensors = Placed(wide(values), {})
    parts = TaskParts(bundle, task, tables, {}, parameters, {}, gate, arena, page_table, {})
    module = build(parts, read_config(bundle), {})
    put_into(module, values)
    for name, part in read_low_rank(bundle, task).items():
        layer = module.get_submodule(full_name(module, name))
        layer.register_forward_hook(_adding(torch.from_numpy(part.down), torch.from_numpy(part.up)))
    return module


def _adding(down: Tensor, up: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """A hook of a linear layer by which a low-rank part in memory is added to its outputs."""

    def hook(_: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
        return y + linear(linear(inputs[0].to(down.dtype), down), up).to(y.dtype)

    return hook
