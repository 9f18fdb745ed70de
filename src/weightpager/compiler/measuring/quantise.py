"""Weight-only quantisation of a dense model, as values: what 8 to 2 bits do to accuracy and to bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_SCALE_BYTES = 2  # one float16 per group


@dataclass(frozen=True)
class Quantisation:
    """Symmetric, rounded to nearest, a scale for each ``group`` of neighbouring inputs of one output.

    Attributes:
        bits: bits of a value.
        group: number of values that share a scale; 0 for a whole row.
    """

    bits: int
    group: int

    def fraction(self, in_features: int) -> float:
        """Bytes of a quantised weight, scales included, as a share of the same one in bfloat16."""
        return self.bits / 16 + _SCALE_BYTES / (2 * (self.group or in_features))

    def apply(self, weight: Tensor) -> Tensor:
        """``weight [O, I]`` as it comes back: quantised and multiplied out, in its own dtype."""
        rows, columns = weight.shape
        group = self.group or columns
        padded = torch.nn.functional.pad(weight, (0, -columns % group)).view(rows, -1, group)
        top = 2 ** (self.bits - 1) - 1
        scale = padded.abs().amax(-1, keepdim=True).half().to(weight.dtype) / top  # [O, groups, 1]
        steps = (padded / scale.clamp(min=1e-12)).round_().clamp_(-top, top)
        found: Tensor = steps.mul_(scale).view(rows, -1)[:, :columns]
        return found.contiguous()


INT8 = Quantisation(8, 0)
"""As LLM.int8 and torchao do it: a scale per output."""

INT4 = Quantisation(4, 32)
"""As GGUF's Q4_0 and most 4-bit formats do it: a scale per 32 values."""

INT3, INT2 = Quantisation(3, 32), Quantisation(2, 32)
"""The same with fewer bits."""

QUANTISATIONS = {"int8": INT8, "int4": INT4, "int3": INT3, "int2": INT2}
"""The quantisations that a bundle is compared with, most bits first."""
