"""Block tables drawn by chance, and what they should say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from weightpager.blocks import BlockGrid, BlockShape
from weightpager.bundle.format.block_table import BlockNumbers, BlockTable
from weightpager.bundle.format.placement import Placement


def table_of(keep: np.ndarray, locations: np.ndarray) -> BlockTable:
    """The table of a keep mask ``[grid rows, grid cols]`` and every block's location (same shape)."""
    crow = np.concatenate([[0], np.cumsum(keep.sum(1))]).astype(np.int32)
    return BlockTable(crow, np.nonzero(keep)[1].astype(np.int32), locations[keep].astype(np.int32))


@dataclass(frozen=True)
class Weight:
    """As `BlockNumbers.of` wants it of a manifest."""

    name: str
    layer: int
    rows: int
    cols: int


@dataclass(frozen=True)
class Weights:
    weights: list[Weight]

    @property
    def layers(self) -> int:
        return max(weight.layer for weight in self.weights) + 1

    def grid(self, weight: Weight) -> BlockGrid:
        return BlockGrid(weight.rows * 8 - 1, weight.cols * 8 - 3, BlockShape(8, 8))


@st.composite
def weights(draw: st.DrawFn) -> Weights:
    """A few small ones, in any order of their layers."""
    sizes = draw(st.lists(st.tuples(*[st.integers(1, 5)] * 2, st.integers(0, 2)), min_size=1, max_size=6))
    return Weights([Weight(f"w{n}", layer, rows, cols) for n, (rows, cols, layer) in enumerate(sizes)])


@dataclass(frozen=True)
class Drawn:
    """A placement, and where each task finds each block of each weight: −1 where it keeps none."""

    placement: Placement
    where: dict[str, np.ndarray]


@st.composite
def placements(draw: st.DrawFn, tasks: int = 3, places: int = 4) -> Drawn:
    """Pages of one layer each, in any order, with gaps; tasks that share blocks or have own copies of them."""
    drawn = draw(weights())
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    numbers = BlockNumbers.of(drawn)  # type: ignore[arg-type]
    versions: dict[int, list[tuple[int, int, list[int]]]] = {}  # layer → (weight, block, tasks)
    for position, weight in enumerate(drawn.weights):
        for block in range(weight.rows * weight.cols):
            keep = np.flatnonzero(random.random(tasks) < 0.6)
            own = random.random() < 0.3
            for users in [[task] for task in keep] if own else [list(keep)]:
                if users or random.random() < 0.5:  # a block that nobody uses any more
                    versions.setdefault(weight.layer, []).append((position, block, users))
    pages = []
    for layer, of_layer in versions.items():
        random.shuffle(of_layer)
        while of_layer:
            count = random.integers(1, places + 1)
            pages.append((layer, of_layer[:count]))
            del of_layer[:count]
    random.shuffle(pages)
    blocks = np.full((len(pages), places), numbers.unused)
    where = {w.name: np.full((tasks, w.rows * w.cols), -1) for w in drawn.weights}
    used: list[list[int]] = [[] for _ in range(tasks)]
    for page, (_, held) in enumerate(pages):
        for place, (position, block, users) in zip(random.permutation(places), held, strict=False):
            blocks[page, place] = numbers.in_layer(np.array(position), np.array(block))
            for task in users:
                used[task].append(page * places + place)
                where[drawn.weights[position].name][task, block] = page * places + place
    layers = np.array([layer for layer, _ in pages], np.int32)
    return Drawn(Placement.of(numbers, layers, blocks, [np.array(some, np.int64) for some in used]), where)
