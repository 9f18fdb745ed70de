"""The native CPU kernels: what they can run on, and the checked call.

Importing this module fails with ImportError where the native module hasn't been built.
"""

from __future__ import annotations

import torch
from torch import Tensor

import weightpager.kernels._native as _native
from weightpager.kernels.paged_weight import PagedWeight, PageNotResidentError


def isas() -> tuple[str, ...]:
    """Instruction sets that this machine can run, best first."""
    return tuple(_native.isas())


def threading() -> str:
    """``"gomp"`` if work is spread over torch's OpenMP threads, else ``"serial"``."""
    return _native.threading()


def paged_linear(x: Tensor, weight: PagedWeight, bias: Tensor | None, isa: str) -> Tensor:
    """``x @ W.T + bias`` by the kernel for ``isa``, on ``torch.get_num_threads()`` threads.

    ``x`` and ``bias`` have been checked by `weightpager.kernels.paged_linear`; the number of threads doesn't change
    the result.

    Raises:
        PageNotResidentError: a block's page is not in the arena.
    """
    rows = x.detach().reshape(-1, weight.in_features).contiguous()
    bias = None if bias is None else bias.detach().contiguous()
    y = torch.empty(rows.shape[0], weight.out_features, dtype=x.dtype)
    missing = _native.linear(
        isa=isa,
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
        weight_bfloat16=weight.dtype == torch.bfloat16,
        x=rows.data_ptr(),
        y=y.data_ptr(),
        bfloat16=x.dtype == torch.bfloat16,
        tokens=rows.shape[0],
        bias=0 if bias is None else bias.data_ptr(),
        bias_bfloat16=bias is not None and bias.dtype == torch.bfloat16,
        threads=torch.get_num_threads(),
    )
    if missing >= 0:
        raise PageNotResidentError(missing)
    return y.view(*x.shape[:-1], weight.out_features)
