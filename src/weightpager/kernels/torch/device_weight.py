"""`DeviceWeight`: a paged weight whose arena is a device's memory."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import Parameter

from weightpager.kernels.paged_weight import BlockedWeight, PagedWeight, check_tables

TABLES = ("page_table", "crow_indices", "col_indices", "locations")


@dataclass(frozen=True, slots=True, eq=False)
class DeviceWeight(BlockedWeight):
    """A paged weight over tensors on one device."""

    def __post_init__(self) -> None:
        self.check_sizes()
        _check_tensor("arena", self.arena, torch.uint8, 2, self.arena.device)
        for name in TABLES:
            _check_tensor(name, getattr(self, name), torch.int32, 1, self.arena.device)
        tables = (table.cpu().numpy() for table in (self.crow_indices, self.col_indices, self.locations))
        check_tables(self, self.page_table.shape[0], *tables)

    @classmethod
    def of(cls, weight: PagedWeight, device: str | torch.device = "cpu") -> DeviceWeight:
        """The same weight on a device. Where that is the host, it is over the same memory."""
        same = {each.name: getattr(weight, each.name) for each in fields(BlockedWeight)}
        moved = zip(("arena", *TABLES), (tensor.to(device) for tensor in tensors(weight)), strict=True)
        return cls(**(same | dict(moved)))


Weight = PagedWeight | DeviceWeight
"""What torch's kernels multiply by: on the host arrays, elsewhere tensors."""

_HOST = torch.device("cpu")


def device_of(weight: Weight) -> torch.device:
    return weight.arena.device if isinstance(weight, DeviceWeight) else _HOST


def tensors(weight: Weight) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A weight's arena, page table, rows, columns and locations, as tensors over the same memory."""
    arena, table, crow, columns, locations = (getattr(weight, name) for name in ("arena", *TABLES))
    if isinstance(weight, DeviceWeight):
        return arena, table, crow, columns, locations
    of = torch.from_numpy
    return of(arena), of(table), of(crow), of(columns), of(locations)


def _check_tensor(name: str, tensor: Tensor, dtype: torch.dtype, dimensions: int, device: torch.device) -> None:
    if tensor.dtype != dtype or tensor.dim() != dimensions:
        raise ValueError(f"{name}: expected {dimensions}-d {dtype}, got {tensor.dim()}-d {tensor.dtype}")
    if tensor.device != device or tensor.layout != torch.strided:
        raise ValueError(f"{name}: expected a dense tensor on {device}, got {tensor.layout} on {tensor.device}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor, got strides {tensor.stride()}")


def operands(x: Tensor, out_features: int) -> tuple[Tensor, Tensor]:
    """The activations as contiguous memory, and memory for the result."""
    rows = x if x.is_contiguous() else x.contiguous()
    y = torch.empty((*x.shape[:-1], out_features), dtype=x.dtype, device=x.device)
    for tensor in (rows, y):
        check_memory(tensor)
    return rows, y


def check_memory(tensor: Tensor) -> None:
    """Refuse a FakeTensor, which has a shape but no memory; tensors that are made in `FakeTensorMode` are such."""
    if type(tensor) in (Tensor, Parameter):
        return
    from torch._subclasses import FakeTensor  # takes long, and nearly never is there any

    if isinstance(tensor, FakeTensor):
        raise ValueError(
            "expected tensors with values, got a FakeTensor: call kernels outside of FakeTensorMode, or the task's "
            "layers inside of it"
        )


def as_array(tensor: Tensor) -> npt.NDArray[Any]:
    """A tensor on the host as an array; bfloat16 as uint16."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


def as_tensor(array: npt.NDArray[Any], dtype: str) -> Tensor:
    """An array as a tensor of a dtype by name; uint16 of a bfloat16."""
    if dtype == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
