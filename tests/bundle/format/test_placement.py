"""Block tables as files and memory hold them, against tables built block by block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightpager.blocks import BlockGrid, BlockShape
from weightpager.bundle.format.block_numbers import BlockNumbers
from weightpager.bundle.format.block_table import FIELDS, BlockTable
from weightpager.bundle.format.placement import Placement
from weightpager.errors import BundleFormatError


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


@given(placements())
def test_a_task_finds_what_was_placed_for_it(drawn: Drawn) -> None:
    drawn.placement.validate()
    for task in range(3):
        tables = drawn.placement.tables(task)
        assert list(tables) == list(drawn.where)
        for (name, table), grid in zip(tables.items(), drawn.placement.numbers.grids, strict=True):
            where = drawn.where[name][task].reshape(grid.rows, grid.cols)
            wanted = BlockTable.build(where >= 0, where)
            assert all(np.array_equal(getattr(table, field), getattr(wanted, field)) for field in FIELDS)
            assert {getattr(table, field).dtype for field in FIELDS} == {np.dtype(np.int32)}
        assert sum(table.nbytes for table in tables.values()) == drawn.placement.table_bytes(task)


@given(placements(), st.integers(0, 2**32))
def test_pages_may_have_other_numbers(drawn: Drawn, seed: int) -> None:
    placement = drawn.placement
    numbers = np.random.default_rng(seed).permutation(2 * len(placement.layers) + 1)[: len(placement.layers)]
    for task in range(3):
        plain, moved = placement.tables(task), placement.tables(task, numbers)
        for name in plain:
            page, place = np.divmod(plain[name].locations, 4)
            assert np.array_equal(moved[name].locations, numbers[page] * 4 + place)
            assert np.array_equal(moved[name].col_indices, plain[name].col_indices)


@given(placements(), st.lists(st.integers(0, 2), unique=True, min_size=1))
def test_some_tasks_keep_what_they_use(drawn: Drawn, tasks: list[int]) -> None:
    placement = drawn.placement
    bits = np.bitwise_or.reduce(np.uint64(1) << np.array(tasks, np.uint64))
    pages = (placement.signatures() & bits) != 0
    smaller = placement.only(pages, tasks)
    smaller.validate()
    kept = np.flatnonzero(pages)
    for number, task in enumerate(tasks):
        for name, table in smaller.tables(number).items():
            page, place = np.divmod(table.locations, 4)
            assert np.array_equal(kept[page] * 4 + place, placement.tables(task)[name].locations)


@given(placements())
def test_signatures_follow_from_the_bits(drawn: Drawn) -> None:
    users = drawn.placement.users()
    for task in range(3):
        assert np.array_equal(
            np.flatnonzero(users >> np.uint64(task) & np.uint64(1)), drawn.placement.locations_of(task)
        )
        assert drawn.placement.kept(task) == len(drawn.placement.locations_of(task))
    pages = drawn.placement.signatures()
    assert all(pages[page] == np.bitwise_or.reduce(users[page * 4 : page * 4 + 4]) for page in range(len(pages)))


@given(placements())
def test_every_place_that_holds_a_block_is_found_by_its_weight(drawn: Drawn) -> None:
    placement = drawn.placement
    found = np.concatenate([locations for _, locations in placement.by_weight()])
    there = np.flatnonzero(placement.blocks.reshape(-1) != placement.numbers.unused)
    assert np.array_equal(np.sort(found), there)


def test_wide_layers_have_wide_numbers() -> None:
    for blocks, dtype in ((65_535, np.uint16), (65_536, np.uint32)):
        numbers = BlockNumbers.of(Weights([Weight("w", 0, 1, blocks)]))  # type: ignore[arg-type]
        assert (numbers.dtype, numbers.unused, numbers.total) == (dtype, np.iinfo(dtype).max, blocks)


def test_a_private_copy_is_another_place_of_the_same_block() -> None:
    numbers = BlockNumbers.of(Weights([Weight("w", 0, 2, 2)]))  # type: ignore[arg-type]
    blocks = np.array([[3, 3, 1, numbers.unused]])
    found = Placement.of(numbers, np.zeros(1, np.int32), blocks, [np.array([0, 2]), np.array([1, 2])])
    found.validate()
    assert [found.tables(task)["w"].locations.tolist() for task in (0, 1)] == [[2, 0], [2, 1]]


@pytest.mark.parametrize("used", [[0, 1], [3], [0, 3]])
def test_what_no_task_can_use_is_refused(used: list[int]) -> None:
    numbers = BlockNumbers.of(Weights([Weight("w", 0, 2, 2)]))  # type: ignore[arg-type]
    blocks = np.array([[3, 3, 1, numbers.unused]])
    with pytest.raises(BundleFormatError, match=r"placement.safetensors: used.0: expected"):
        Placement.of(numbers, np.zeros(1, np.int32), blocks, [np.array(used)]).validate()
