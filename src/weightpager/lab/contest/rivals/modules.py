"""Torch modules of a bundle's tasks, over memory that a method keeps itself."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from weightpager.backends.parameters import Placed
from weightpager.backends.task_parts import TaskParts
from weightpager.backends.torch.model.architecture import empty_module, full_name, read_config
from weightpager.backends.torch.parameters import Tensors
from weightpager.backends.torch.task_module import assign, build, route
from weightpager.bundle import BlockTable, Bundle
from weightpager.bundle.parts.adapter import read_adapter
from weightpager.lab.contest.rivals.few_bits.replacement import put_into
from weightpager.lab.contest.rivals.parameters import wide
from weightpager.runtime.paging.task_gate import TaskGate


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
    parts = TaskParts(bundle, task, tables, parameters, read_adapter(bundle, task), gate, arena, page_table, {})
    module = build(parts, read_config(bundle), {})
    put_into(module, values)
    return module
