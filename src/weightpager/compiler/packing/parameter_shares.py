"""Which parameters tasks share, which each has for itself, and which tables come on demand."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ParameterShares:
    """All parameters that aren't paged in blocks, by where a bundle has them.

    Attributes:
        resident: the values that the most tasks share, by name.
        private: task → its own values, by name.
        tables: tables on which all tasks agree and whose rows come on demand, by name.
    """

    resident: dict[str, Tensor]
    private: dict[str, dict[str, Tensor]]
    tables: dict[str, Tensor]


def share_parameters(of_tasks: Mapping[str, Mapping[str, Tensor]], on_demand: Collection[str]) -> ParameterShares:
    """Find what tasks share.

    A value that a single one of several tasks has is its own.

    Args:
        of_tasks: task → its parameters, by name.
        on_demand: names of the tables whose rows may come on demand.
    """
    resident: dict[str, Tensor] = {}
    private: dict[str, dict[str, Tensor]] = {task: {} for task in of_tasks}
    for name in sorted({name for own in of_tasks.values() for name in own}):
        groups = _agreeing({task: own[name] for task, own in of_tasks.items() if name in own})
        largest = max(groups, key=len)
        if len(largest) > 1 or len(of_tasks) == 1:
            resident[name] = of_tasks[largest[0]][name]
            groups.remove(largest)
        for task in (task for group in groups for task in group):
            private[task][name] = of_tasks[task][name]
    in_all = {name for name in on_demand if not any(name in own for own in private.values())}
    tables = {name: resident.pop(name) for name in sorted(in_all & resident.keys())}
    return ParameterShares(resident, private, tables)


def _agreeing(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """Tasks in groups of the same values."""
    groups: list[list[str]] = []
    for task, tensor in tensors.items():
        group = next((group for group in groups if _same(tensors[group[0]], tensor)), None)
        if group is None:
            groups.append([task])
        else:
            group.append(task)
    return groups


def _same(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() or (a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(a, b)))
