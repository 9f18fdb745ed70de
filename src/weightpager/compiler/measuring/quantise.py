"""Weight-only quantisation of a dense model, as values: what 8 to 2 bits do to accuracy and to bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from weightpager.page_dtype import ENCODINGS, Encoding, nearest

_SCALE_BYTES = 2  # 16 bits per group


@dataclass(frozen=True)
class Quantisation:
    """Weights of few bits, with a scale for each ``group`` of neighbouring inputs of one output.

    Attributes:
        bits: bits of a value.
        group: number of values that share a scale, a power of two. 0 for a whole row, whose scale is its largest value
            over the largest number.
        divisors: of a group's largest value, for the scales that are tried: the one with the least squared error is
            taken, as in a bundle's pages.
    """

    bits: int
    group: int
    divisors: tuple[float, ...] = ()

    def fraction(self, in_features: int) -> float:
        """Bytes of a quantised weight, scales included, as a share of the same one in bfloat16."""
        return self.bits / 16 + _SCALE_BYTES / (2 * (self.group or in_features))

    def apply(self, weight: Tensor) -> Tensor:
        """``weight [O, I]`` as it comes back: quantised and multiplied out, in its own dtype."""
        return self._by_group(weight) if self.group else self._by_row(weight)

    def _by_row(self, weight: Tensor) -> Tensor:
        top = 2 ** (self.bits - 1) - 1
        scale = weight.abs().amax(-1, keepdim=True).half().to(weight.dtype) / top  # [O, 1]
        numbers: Tensor = (weight / scale.clamp(min=1e-12)).round_().clamp_(-top, top)
        return numbers.mul_(scale)

    def _by_group(self, weight: Tensor) -> Tensor:
        rows, columns = weight.shape
        padded = torch.nn.functional.pad(weight.float(), (0, -columns % self.group)).view(rows, -1, self.group)
        found = torch.from_numpy(nearest(padded.cpu().numpy(), self.encoding))
        return found.view(rows, -1)[:, :columns].to(weight).contiguous()

    @property
    def encoding(self) -> Encoding:
        """The numbers of a group and its scales, as pages would hold them."""
        half = 2 ** (self.bits - 1)
        return replace(ENCODINGS["int8"], bits=self.bits, least=-half, largest=half - 1, divisors=self.divisors)


INT8 = Quantisation(8, 0)
"""As LLM.int8 and torchao do it: a scale per output."""

_GROUP = 32
"""Of values that share a scale, as in GGUF's Q4_0."""

INT4 = Quantisation(4, _GROUP, ENCODINGS["int4"].divisors)
"""As a bundle of all blocks rounds them in int4. Q4_0, which tries one scale, has a tenth more of squared error."""

_CLIPPED = (1.15, 1.3, 1.5, 1.75, 2.0, 2.5)
"""Multiples of the least number, as divisors: with two or three bits it pays to cut off the largest values."""


def _fewer(bits: int) -> Quantisation:
    half = 2.0 ** (bits - 1)
    scaled = [half / 8 * divisor for divisor in ENCODINGS["int4"].divisors if abs(divisor) > 7]
    clipped = [half * sign * multiple for multiple in _CLIPPED for sign in (1, -1)]
    return Quantisation(bits, _GROUP, (*scaled, *clipped, *range(int(half) - 1, 0, -1)))


INT3, INT2 = _fewer(3), _fewer(2)
"""The same with fewer bits."""

QUANTISATIONS = {"int8": INT8, "int4": INT4, "int3": INT3, "int2": INT2}
"""The quantisations that a bundle is compared with, most bits first."""
