"""Values of one linear layer that several tasks' masks share: by least squares, and on the grids of few bits.

Per output row w, with dense values w₀, they minimise

    Σ_t ‖X̃_t (m_t ∘ w) − X_t w₀‖² / N_t  +  r ‖w − w₀‖²,

that is, they solve  H w = Σ_t D_t C_t w₀ + r w₀  with  H = Σ_t D_t A_t D_t + r I,  D_t = diag(m_t), A_t = X̃_tᵀX̃_t / N_t
and C_t = X̃_tᵀX_t / N_t. All rows of a block have the same masks, so a row of blocks has one H and one Cholesky factor
H = L Lᵀ, over the columns that any task keeps; what no task keeps stays as it is.

Where pages have few bits a weight, the same factor rounds with error feedback, as GPTQ does (arXiv 2210.17323): moving
w by d costs d H dᵀ = ‖d L‖², in which column k of L is met by the columns from k on alone. So columns are rounded from
the last to the first, and each takes the value that makes up best for what those behind it have moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from weightpager.blocks import BlockGrid
from weightpager.compiler.recovery.rounding import divisors, scales
from weightpager.compiler.training.masks import drop
from weightpager.errors import CompileError
from weightpager.page_dtype import Encoding

Doubles = npt.NDArray[np.float64]

RIDGE = 0.01
"""r, as a share of the mean diagonal of Σ_t A_t: holds values of which the inputs tell nothing."""

_COLUMNS_AT_ONCE = 64
"""Between two products with all columns that are rounded already."""

BYTES_AT_ONCE = 1 << 23
"""Of factors: with small ones, several rows of blocks are rounded at once, a column of each.

Four times as many are a fifth faster, but the heap keeps 60 MB of what they leave.
"""


def refitted(
    original: Tensor,
    a: Sequence[Tensor],
    c: Sequence[Tensor],
    keep: Sequence[Tensor],
    grid: BlockGrid,
    encoding: Encoding | None = None,
) -> Tensor:
    """The values of a weight, float32 ``[out_features, in_features]``.

    Args:
        original: w₀ of every row, float32.
        a: of every task E[x̃ x̃ᵀ], float32 [in_features, in_features].
        c: of every task E[x̃ xᵀ], in the same shape.
        keep: of every task its mask, bool [grid rows, grid cols].
        grid: how the weight is cut into blocks.
        encoding: of pages with few bits, on whose grids the values shall lie; each row of a block has the scale that
            its values before rounding lead to.

    Raises:
        CompileError: the inputs aren't finite.
    """
    system = _System(original, a, c, keep, grid)
    values = original.clone()
    for rows in system.together():
        lower = system.factors(rows)
        for place, row in enumerate(rows):
            system.solve(values, row, lower[place])
        if encoding is not None:
            _round(values, system, rows, lower, encoding)
    return values


class _System:
    """The least squares of a weight, a row of blocks at a time."""

    def __init__(
        self, original: Tensor, a: Sequence[Tensor], c: Sequence[Tensor], keep: Sequence[Tensor], grid: BlockGrid
    ) -> None:
        self.grid = grid
        self.ridge = RIDGE * sum(float(moment.diagonal().mean()) for moment in a) or 1.0  # where all inputs are zero
        self._keep = torch.stack(list(keep)).float()  # [tasks, grid rows, grid cols]
        self._a = a
        # What moving the original values shall bring: nothing, to the last bit, where all is as in the dense model.
        self._goal = torch.zeros_like(original)
        for mask, own, across in zip(self._keep, a, c, strict=True):
            dropped = original - drop(original, mask, grid)
            self._goal += drop(original @ (across - own).T + dropped @ own, mask, grid)
        self.columns = [self._by_energy(row) for row in range(grid.rows)]
        """Of each row of blocks the columns that any task keeps, those of little energy first."""

    def together(self) -> Iterator[list[int]]:
        """Rows of blocks in groups, whose factors don't take more than a little memory unless one alone does."""
        group: list[int] = []
        for row, columns in enumerate(self.columns):
            if not len(columns):
                continue
            most = max(len(columns), *(len(self.columns[other]) for other in group), 0)
            if group and 8 * most**2 * (len(group) + 1) > BYTES_AT_ONCE:
                yield group
                group = []
            group.append(row)
        if group:
            yield group

    def factors(self, rows: Sequence[int]) -> Tensor:
        """L of rows of blocks over their `columns`, float64 [len(rows), most columns, most columns].

        Each stands at the end, behind ones on the diagonal.
        """
        most = max(len(self.columns[row]) for row in rows)
        found = torch.eye(most, dtype=torch.float64).repeat(len(rows), 1, 1)
        for place, row in enumerate(rows):
            front = most - len(self.columns[row])
            found[place, front:, front:] = self._factor(row)
        return found

    def _factor(self, row: int) -> Tensor:
        at = self.columns[row]
        hessian = torch.zeros_like(self._a[0])
        for mask, moment in zip(self._kept(row), self._a, strict=True):
            hessian.addcmul_(moment * mask, mask[:, None])
        found = hessian[at][:, at].double()
        found.diagonal().add_(self.ridge)
        lower, wrong = torch.linalg.cholesky_ex(found)
        if wrong:
            raise CompileError(
                "closed-form recovery: expected finite inputs of all layers on the calibration data, found others; use "
                "'recover: {method: finetune}' or none"
            )
        factor: Tensor = lower
        return factor

    def rows(self, row: int) -> slice:
        """A row of blocks as rows of the weight."""
        height = self.grid.block.rows
        return slice(row * height, min((row + 1) * height, self.grid.out_features))

    def solve(self, values: Tensor, row: int, lower: Tensor) -> None:
        """Move a row of blocks from the original values to the solution, by its part of `factors`."""
        at, rows = self.columns[row], self.rows(row)
        front = len(lower) - len(at)
        values[rows, at] += torch.cholesky_solve(self._goal[rows, at].T.double(), lower[front:, front:]).T.float()

    def _kept(self, row: int) -> Tensor:
        """1 where a task keeps a column, else 0, float32 [tasks, in_features]."""
        return self._keep[:, row].repeat_interleave(self.grid.block.cols, 1)[:, : self.grid.in_features]

    def _by_energy(self, row: int) -> Tensor:
        """The columns that any task keeps, by H's diagonal."""
        kept = self._kept(row)
        energy = sum((mask * moment.diagonal() for mask, moment in zip(kept, self._a, strict=True)), torch.zeros(()))
        used = kept.any(0).nonzero()[:, 0]
        return used[energy[used].argsort(stable=True)]


def _round(values: Tensor, system: _System, rows: Sequence[int], lower: Tensor, encoding: Encoding) -> None:
    """Round rows of blocks in place, all of them column by column: those that have fewer begin with zeros."""
    block = system.grid.block
    weight = np.zeros((len(rows), block.rows, lower.shape[2]))
    steps = np.zeros_like(weight)
    for place, row in enumerate(rows):
        at, of_weight = system.columns[row], values[system.rows(row)]
        own = BlockGrid(len(of_weight), system.grid.in_features, block)
        scaled = scales(of_weight, own, divisors(of_weight, own, encoding))[0]  # [block rows, grid cols]
        weight[place, : len(of_weight), -len(at) :] = of_weight[:, at]
        steps[place, :, -len(at) :] = scaled[:, at // block.cols]
    rounded = torch.from_numpy(fed_back(weight, steps, lower.numpy(), encoding)).float()
    for place, row in enumerate(rows):
        at, into = system.columns[row], system.rows(row)
        values[into, at] = rounded[place, : into.stop - into.start, -len(at) :]


def fed_back(weight: Doubles, steps: Doubles, lower: Doubles, encoding: Encoding) -> Doubles:
    """Weights ``[count, rows, columns]`` rounded from the last column to the first.

    Args:
        weight: the best values.
        steps: the scale of each, 0 where there is none.
        lower: the factor L of each of the ``count``, [count, columns, columns].
        encoding: what multiples of the scales there are.
    """
    divisible = np.where(steps == 0, 1.0, steps)
    diagonal = np.diagonal(lower, axis1=1, axis2=2)[:, None]  # [count, 1, columns]
    rounded, off = np.zeros_like(weight), np.zeros_like(weight)  # off: how far below the best each has come
    for end in range(weight.shape[2], 0, -_COLUMNS_AT_ONCE):
        start = max(0, end - _COLUMNS_AT_ONCE)
        owed = off[..., end:] @ lower[:, end:, start:end]
        for column in range(end - 1, start - 1, -1):
            wanted = weight[..., column] + owed[..., column - start] / diagonal[..., column]
            numbers = np.rint(wanted / divisible[..., column]).clip(encoding.least, encoding.largest)
            rounded[..., column] = numbers * steps[..., column]
            off[..., column] = weight[..., column] - rounded[..., column]
            owed[..., : column - start] += off[..., column, None] * lower[:, None, column, start:column]
    return rounded
