"""Rounding to what pages hold, for training to go through: forward rounded values, backward straight through.

Where a page has few bits a weight, each row of a block has a scale, which is searched. `weightpager.page_dtype` has the
formula; here it is once more in torch, to the last bit, for whatever device trains. A search takes as long as many
roundings and is made now and then. Between two of them a row keeps the divisor that was found, and its scale follows
its largest weight. Packing searches anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from weightpager.blocks import BlockGrid
from weightpager.compiler.model.dense_model import DenseModel, PagedWeightInfo
from weightpager.compiler.training.early_stopping import check_steps
from weightpager.kernels.torch.kept_blocks import RowRounding
from weightpager.page_dtype import ENCODINGS, Encoding, PageDtype, decode, encode

_FEW_LEVELS = 16
"""With more, pages round too little for recovery to gain anything by allowing for it."""

EVERY = 20
"""Steps between two searches, beside those at which a training is checked."""

_ROWS_AT_ONCE = 4096  # that stay in a processor's cache
_KEPT = "/divisors"


def is_coarse(dtype: PageDtype) -> bool:
    """Whether recovery allows for what a dtype rounds: it trains with weights as such pages would hold them."""
    return ENCODINGS[dtype].scaled and ENCODINGS[dtype].levels <= _FEW_LEVELS


class Rounding:
    """What a training sees of weights whose pages have few bits, and the divisors that it has found for their rows."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        paged: Sequence[PagedWeightInfo],
        encoding: Encoding,
        steps: int,
        *,
        checked: bool = True,
    ) -> None:
        """Round these weights.

        Args:
            weights: ``[out_features, in_features]`` by canonical name; they change in place.
            paged: how they are cut into blocks.
            encoding: of their pages.
            steps: of the training.
            checked: whether that is measured on the way, which takes the divisors that packing would find.
        """
        self._weights, self._grids = weights, {info.name: info.grid for info in paged}
        self._encoding = encoding
        self._searches = set(range(0, steps, EVERY)) | (check_steps(steps) if checked else set())
        self._divisors: dict[str, Tensor] = {}

    @classmethod
    def of(
        cls,
        source: DenseModel,
        weights: Mapping[str, Tensor],
        steps: int,
        encoding: Encoding | None = None,
        *,
        checked: bool = True,
    ) -> Rounding | None:
        """What a training of a source's weights goes through; None where pages round so little that it needn't.

        An ``encoding`` takes the place of the pages'.
        """
        dtype = source.task_file.dtype
        chosen = ENCODINGS[dtype] if encoding is None and is_coarse(dtype) else encoding
        return None if chosen is None else cls(weights, source.paged, chosen, steps, checked=checked)

    def update(self, step: int) -> None:
        """Find the rows' divisors anew if this step is one at which that is due; step 0, before the first, is."""
        if step in self._searches:
            for name, weight in self._weights.items():
                self._divisors[name] = divisors(weight.detach(), self._grids[name], self._encoding)

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        """One of the weights as a page will hold it; gradients pass as if it hadn't been rounded."""
        with torch.no_grad():
            values = _rounded(weight, self._divisors[name], self._grids[name], self._encoding)
        rounded: Tensor = _StraightThrough.apply(weight, values)  # type: ignore[no-untyped-call]
        return rounded

    def rows(self, name: str) -> RowRounding:
        """How the rows of one of the weights' blocks are rounded, for products with the blocks alone."""
        return RowRounding(self._divisors[name], self._encoding.least, self._encoding.largest)

    def state(self) -> dict[str, Tensor]:
        """What `restore` needs."""
        return {name + _KEPT: found for name, found in self._divisors.items()}

    def fits(self, state: Mapping[str, Tensor]) -> bool:
        """Whether `restore` finds in a state what it needs."""
        return all(name + _KEPT in state for name in self._weights)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on where another one stood."""
        self._divisors = {name: state[name + _KEPT].to(weight.device) for name, weight in self._weights.items()}


class _StraightThrough(torch.autograd.Function):
    """Other values in a tensor's place, whose gradient is the tensor's."""

    @staticmethod
    def forward(ctx: object, weight: Tensor, values: Tensor) -> Tensor:  # noqa: ARG004 - as torch calls it
        return values

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return gradient, None


def stored(weight: Tensor, grid: BlockGrid, dtype: PageDtype) -> Tensor:
    """A weight ``[out_features, in_features]`` as pages of any dtype give it back."""
    cut = grid.cut(weight.detach().cpu().numpy())
    blocks = encode(cut.reshape(-1, grid.block.rows, grid.block.cols).astype(np.float32, copy=False), dtype)
    decoded = grid.join(decode(blocks, grid.block, dtype).reshape(cut.shape))
    return torch.from_numpy(decoded.copy()).to(weight.device)


def stored_if_coarse(weight: Tensor, grid: BlockGrid, dtype: PageDtype) -> Tensor:
    """`stored` where recovery goes through the rounding, else the weight itself."""
    return stored(weight, grid, dtype) if is_coarse(dtype) else weight


def divisors(weight: Tensor, grid: BlockGrid, encoding: Encoding) -> Tensor:
    """The divisor of each row of a block: its largest weight divided by it, as bfloat16, is its scale.

    Args:
        weight: float32 ``[out_features, in_features]``.
        grid: its blocks.
        encoding: of a dtype whose rows have scales.

    Returns:
        Float32 [grid rows, block rows, grid cols].
    """
    cut = _cut(weight, grid)
    parts = torch.split(cut.reshape(-1, grid.block.cols), _ROWS_AT_ONCE)
    return torch.cat([_best(part.T.contiguous(), encoding) for part in parts]).view(cut.shape[:-1])


def scales(weight: Tensor, grid: BlockGrid, divided_by: Tensor) -> Tensor:
    """The scales that `divisors` lead to, float32 [grid rows, block rows, grid cols]."""
    return _scales(_cut(weight, grid), divided_by)


def _best(weights: Tensor, encoding: Encoding) -> Tensor:
    """The divisors of rows [cols, N] that round them with the least squared error."""
    largest = weights.abs().amax(0)
    best = torch.full_like(largest, encoding.divisors[-1])
    least = torch.full_like(largest, torch.inf)
    unit = torch.where(largest > 0, largest, 1.0)
    for divisor in encoding.divisors:
        step = (largest / divisor).bfloat16().float()
        usable = (step != 0) & step.isfinite()
        off = weights / torch.where(usable, step, 1.0)
        off = off.sub_(off.round().clamp_(encoding.least, encoding.largest)).square_()
        while len(off) > 1:
            off = off[: len(off) // 2] + off[len(off) // 2 :]
        share = step / unit
        error = off[0] * (share * share)
        better = usable & (error < least)
        best, least = torch.where(better, divisor, best), torch.where(better, error, least)
    return best


def _rounded(weight: Tensor, divided_by: Tensor, grid: BlockGrid, encoding: Encoding) -> Tensor:
    cut = _cut(weight, grid)
    scaled = _scales(cut, divided_by)[..., None]
    numbers = (cut / torch.where(scaled == 0, 1.0, scaled)).round_()
    whole = numbers.clamp_(encoding.least, encoding.largest).mul_(scaled)
    return whole.view(grid.rows * grid.block.rows, -1)[: grid.out_features, : grid.in_features]


def _scales(cut: Tensor, divided_by: Tensor) -> Tensor:
    return (cut.abs().amax(-1) / divided_by).bfloat16().float()


def _cut(weight: Tensor, grid: BlockGrid) -> Tensor:
    """[grid rows, block rows, grid cols, block cols], filled up with zeros."""
    block = grid.block
    below, right = grid.rows * block.rows - grid.out_features, grid.cols * block.cols - grid.in_features
    if below or right:
        weight = pad(weight, (0, right, 0, below))
    return weight.view(grid.rows, block.rows, grid.cols, block.cols)
