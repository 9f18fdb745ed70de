"""Matrices in int8 and int4, with bfloat16 scales: pure."""

from __future__ import annotations

import torch
from torch import Tensor

from weightpager.page_dtype import ENCODINGS, best_scales

GROUP = 32
"""Neighbouring inputs of an int4 weight that share a scale: the smallest group of torch's product."""


_AT_ONCE = 4096
"""Rows that are rounded at a time: in float32 a whole embedding table takes four times what it does in int8."""


def int8_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix in int8, and a scale for each row."""
    numbers, scales = zip(*map(_int8, torch.split(weight, _AT_ONCE)), strict=True)
    return torch.cat(numbers), torch.cat(scales)


def _int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    wide = rows.float()
    scales = (wide.abs().amax(1).clamp(min=1e-9) / 127).to(torch.bfloat16)
    return (wide / scales.float()[:, None]).round().clamp(-127, 127).to(torch.int8), scales


def int4_groups(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix in numbers from -8 to 7, and scales [rows, columns / GROUP], searched as those of int4 pages are."""
    groups = weight.float().reshape(len(weight), -1, GROUP)
    scales = torch.from_numpy(best_scales(groups.numpy(), ENCODINGS["int4"]).view("<i2")).view(torch.bfloat16)
    wide = scales.float()[:, :, None]
    numbers = (groups / torch.where(wide == 0, 1.0, wide)).round().clamp(-8, 7).to(torch.int8)
    return numbers.view(weight.shape), scales
