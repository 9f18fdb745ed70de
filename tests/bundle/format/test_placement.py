"""Block tables as files and memory hold them, against tables built block by block."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placements import Drawn, Weight, Weights, placements, table_of
from weightpager.bundle.format.block_table import FIELDS, BlockNumbers
from weightpager.bundle.format.placement import Placement
from weightpager.errors import BundleFormatError


@given(placements())
def test_a_task_finds_what_was_placed_for_it(drawn: Drawn) -> None:
    drawn.placement.validate()
    for task in range(3):
        tables = drawn.placement.tables(task)
        assert list(tables) == list(drawn.where)
        for (name, table), grid in zip(tables.items(), drawn.placement.numbers.grids, strict=True):
            where = drawn.where[name][task].reshape(grid.rows, grid.cols)
            wanted = table_of(where >= 0, where)
            assert all(np.array_equal(getattr(table, field), getattr(wanted, field)) for field in FIELDS)
            assert {getattr(table, field).dtype for field in FIELDS} == {np.dtype(np.int32)}
        sizes = [getattr(table, field).nbytes for table in tables.values() for field in FIELDS]
        assert sum(sizes) == drawn.placement.table_bytes(task)


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
