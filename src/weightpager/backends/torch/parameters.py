"""Parameters of a bundle as tensors: over the same memory on the host, copied to other devices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from weightpager.backends import task_parts
from weightpager.backends.task_parts import Parameters, Placed, whole_in
from weightpager.bundle import Bundle
from weightpager.bundle.format.row_table import decode_rows
from weightpager.bundle.format.whole_weight import decode_whole
from weightpager.kernels.torch import DeviceWeight, Weight
from weightpager.kernels.torch.device_weight import as_tensor
from weightpager.store.block_reader import RowReader

_HOST = torch.device("cpu")

Tensors = Placed[Tensor, Weight]


def placed(read: Parameters, device: torch.device) -> Tensors:
    """Parameters on a device; on the host over the memory that they are in."""
    if device.type == "cpu":
        return Placed({name: as_tensor(of.values, of.dtype) for name, of in read.values.items()}, read.whole)
    whole = {name: DeviceWeight.of(weight, device) for name, weight in read.whole.items()}
    values = {
        name: whole[name].arena if name in whole else as_tensor(of.values, of.dtype).to(device)
        for name, of in read.values.items()
    }
    return Placed(values, whole)


def read_parameters(bundle: Bundle, file: str) -> dict[str, Tensor]:
    """All tensors of a parameter file, by canonical name, on the host. Errors are those of the arrays' reader."""
    return dict(placed(task_parts.read_parameters(bundle, file), _HOST).values)


def device_rows(bundle: Bundle, device: torch.device) -> dict[str, Tensor]:
    """The tables whose rows are in pages, whole on a device: uint8 [rows, columns + 2] each, by name, by row.

    Raises:
        BundleError, StoreError: a page is damaged, or can't be read.
    """
    with RowReader(bundle) as reader:
        return {name: torch.from_numpy(reader.stored(name)).to(device) for name in bundle.row_tables}


def read_rows(bundle: Bundle) -> dict[str, Tensor]:
    """The values of the tables whose rows are in pages, float32 [rows, columns], by name. Errors as `device_rows`."""
    with RowReader(bundle) as reader:
        return {name: torch.from_numpy(decode_rows(reader.stored(name))) for name in bundle.row_tables}


def widened(bundle: Bundle, values: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The parameters of a file, tables in blocks as ``[rows, columns]`` of a dtype."""
    block = bundle.manifest.block_shape
    entries = whole_in(bundle, {name: dtype_name(value.dtype) for name, value in values.items()})
    tables = {
        entry.name: torch.from_numpy(decode_whole(values[entry.name].numpy(), entry, block)).to(dtype)
        for entry in entries
    }
    return {**values, **tables}


def activation_dtype(values: Iterable[Tensor]) -> torch.dtype:
    """What a module of these parameters computes in. See `weightpager.backends.task_parts.activation_dtype`."""
    name = task_parts.activation_dtype(dtype_name(value.dtype) for value in values)
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
