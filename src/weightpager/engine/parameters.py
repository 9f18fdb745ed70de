"""Reading resident and private parameters of a bundle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from weightpager.bundle import Bundle
from weightpager.bundle.format.row_table import decode_rows
from weightpager.bundle.format.tied_table import STORED, TiedTableEntry, decode_table
from weightpager.bundle.parts.parameter_file import checked_parameters
from weightpager.kernels import PagedWeight
from weightpager.kernels.whole_weight import whole_weight
from weightpager.store.row_reader import RowReader

_HOST = torch.device("cpu")


def read_parameters(bundle: Bundle, file: str, device: torch.device = _HOST, dtype: str = "auto") -> dict[str, Tensor]:
    """All tensors of a parameter file, by canonical name, in memory of their own on a device.

    Args:
        bundle: whose file it is.
        file: its name.
        device: where they go.
        dtype: of an `EngineConfig`.

    Raises:
        BundleFormatError: the file isn't what its manifest entry says.
    """
    with checked_parameters(bundle.path, bundle.manifest, file, framework="pt") as tensors:
        # A copy: safe_open maps the file, and a mapping would come and go with the page cache
        return {name: _placed(tensors.get_tensor(name), device, dtype) for name in tensors.keys()}  # noqa: SIM118 - no mapping


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


def tied_weights(bundle: Bundle, values: Mapping[str, Tensor]) -> dict[str, PagedWeight]:
    """What kernels take for the tables that a head is tied to, of those that these parameters have as blocks, by name.

    Args:
        bundle: whose they are.
        values: of a parameter file; referred to, not copied.
    """
    block = bundle.manifest.block_shape
    return {
        entry.name: whole_weight(values[entry.name], entry.rows, entry.columns, (block.rows, block.cols), entry.dtype)
        for entry in _in_blocks(bundle, values)
    }


def widened(bundle: Bundle, values: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The parameters of a file, tables in blocks as ``[rows, columns]`` of a dtype."""
    block = bundle.manifest.block_shape
    tables = {
        entry.name: torch.from_numpy(decode_table(values[entry.name].numpy(), entry, block)).to(dtype)
        for entry in _in_blocks(bundle, values)
    }
    return {**values, **tables}


def _in_blocks(bundle: Bundle, values: Mapping[str, Tensor]) -> list[TiedTableEntry]:
    stored = getattr(torch, STORED)
    return [each for each in bundle.manifest.tied_tables if each.name in values and values[each.name].dtype == stored]


def _placed(value: Tensor, device: torch.device, dtype: str) -> Tensor:
    narrow = dtype == "bfloat16" and value.dtype == torch.float32
    return value.to(device, torch.bfloat16 if narrow else value.dtype, copy=True)


def activation_dtype(values: Iterable[Tensor]) -> torch.dtype:
    """What a module of these parameters computes in: bfloat16 if that is what all of them are in, else float32."""
    floating = {value.dtype for value in values if value.is_floating_point()}
    return torch.bfloat16 if floating == {torch.bfloat16} else torch.float32
