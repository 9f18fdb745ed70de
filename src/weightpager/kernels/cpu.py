"""The native CPU kernels: what they can run on, and the checked call.

Importing this module fails with ImportError where the native module hasn't been built.
"""

from __future__ import annotations

import torch
from torch import Tensor

import weightpager.kernels._native as _native
from weightpager.kernels.operands import check_memory, operands
from weightpager.kernels.paged_weight import PagedWeight, PageNotResidentError

READS = frozenset({"bfloat16", "float32", "int8", "int4"})
"""The pages' dtypes that these kernels read."""


def isas() -> tuple[str, ...]:
    """Instruction sets that this machine can run, best first."""
    return tuple(_native.isas())


def exact(isa: int) -> str:
    """The kernel that serves float32 where number ``isa`` of `isas` is chosen."""
    return _native.exact(isa)


def threading() -> str:
    """``"gomp"`` if work is spread over torch's OpenMP threads, ``"own"`` if over the native module's own."""
    return _native.threading()


def paged_linear(x: Tensor, weight: PagedWeight, bias: Tensor | None, isa: int) -> Tensor:
    """``x @ W.T + bias`` on ``torch.get_num_threads()`` threads; their number doesn't change the result.

    ``x`` and ``bias`` have been checked by `weightpager.kernels.paged_linear`.

    Args:
        x: [..., in_features].
        weight: the weight.
        bias: [out_features].
        isa: which kernel, as an index into `isas`.

    Raises:
        PageNotResidentError: a block's page is not in the arena.
    """
    rows, y = operands(x, weight.out_features)
    missing = _native_weight(weight).linear(
        isa,
        rows.data_ptr(),
        y.data_ptr(),
        x.dtype == torch.bfloat16,
        rows.numel() // weight.in_features,
        *_bias(bias),
        torch.get_num_threads(),
    )
    return _complete(y, missing)


def paged_gated(
    x: Tensor,
    gate: PagedWeight,
    weight: PagedWeight,
    activation: str,
    biases: tuple[Tensor | None, Tensor | None],
    isa: int,
) -> Tensor:
    """``activation(x @ gate.T + biases[0]) * (x @ W.T + biases[1])``, as `paged_linear`."""
    rows, y = operands(x, weight.out_features)
    missing = _native_weight(weight).gated(
        isa,
        _native_weight(gate),
        activation,
        rows.data_ptr(),
        y.data_ptr(),
        x.dtype == torch.bfloat16,
        rows.numel() // weight.in_features,
        *_bias(biases[0]),
        *_bias(biases[1]),
        torch.get_num_threads(),
    )
    return _complete(y, missing)


def _complete(y: Tensor, missing: int) -> Tensor:
    """The result, unless the native module found a page missing."""
    if missing >= 0:
        raise PageNotResidentError(missing)
    return y


def _bias(bias: Tensor | None) -> tuple[int, bool]:
    """Address, 0 for none, and whether it is bfloat16. `dispatch` has made sure that it has no gaps."""
    if bias is None:
        return 0, False
    check_memory(bias)
    return bias.data_ptr(), bias.dtype == torch.bfloat16


def read_memory(tensor: Tensor) -> None:
    """Read all bytes of a contiguous tensor and do nothing with them, as fast as this machine can."""
    _native.read_memory(tensor.data_ptr(), tensor.nbytes, torch.get_num_threads())


def _native_weight(weight: PagedWeight) -> _native.Weight:
    """The weight as the native module knows it, made at the first use: its tensors never move."""
    if not weight.native:
        weight.native.append(
            _native.Weight(
                arena=weight.arena.data_ptr(),
                page_table=weight.page_table.data_ptr(),
                crow_indices=weight.crow_indices.data_ptr(),
                col_indices=weight.col_indices.data_ptr(),
                locations=weight.locations.data_ptr(),
                slots=weight.arena.shape[0],
                page_bytes=weight.arena.shape[1],
                blocks_per_page=weight.blocks_per_page,
                out_features=weight.out_features,
                in_features=weight.in_features,
                block_rows=weight.block_rows,
                block_cols=weight.block_cols,
                dtype=weight.dtype,
            )
        )
    made: _native.Weight = weight.native[0]
    return made
