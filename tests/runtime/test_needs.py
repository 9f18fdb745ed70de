"""How a budget is split: by hand, and the laws that hold for any needs."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from weightpager.bundle.footprint import Footprint
from weightpager.runtime.budget import MemoryNeeds, Split

PAGE = 100

FOOTPRINT = Footprint(resident=1000, private=200, placement=30, largest_table=40, all_tables=90, rows=7)
NEEDS = MemoryNeeds(6, 2, PAGE, FOOTPRINT, more_rows=400)


@st.composite
def any_needs(draw: st.DrawFn) -> MemoryNeeds:
    pages, page_bytes, size = draw(st.integers(1, 30)), draw(st.integers(1, 50)), st.integers(0, 300)
    table = draw(size)
    footprint = Footprint(draw(size), draw(size), draw(size), table, table + draw(size), draw(size), draw(size))
    least = draw(st.integers(1, pages))
    staging, features = draw(st.none() | size), draw(size)
    return MemoryNeeds(pages, least, page_bytes, footprint, 2 * draw(size), draw(size), staging, features)


def test_what_is_left_goes_to_pages_then_tables_then_rows() -> None:
    fixed, least = 1230, 1230 + 7 + 40
    assert NEEDS.split(least + 3 * PAGE) == Split(fixed, 7, 40, 3, PAGE)
    assert NEEDS.split(least + 3 * PAGE + 90) == Split(fixed, 7, 90, 3, PAGE)
    assert NEEDS.split(least + 6 * PAGE - 1).slots == 5
    assert NEEDS.split(least + 6 * PAGE) == Split(fixed, 7, 40, 6, PAGE)
    assert NEEDS.split(least + 6 * PAGE + 50) == Split(fixed, 7, 90, 6, PAGE)
    assert NEEDS.split(least + 6 * PAGE + 50 + 20) == Split(fixed, 27, 90, 6, PAGE)
    assert NEEDS.split(10_000) == NEEDS.holding_all() == Split(fixed, 407, 90, 6, PAGE)


def test_features_of_few_pictures_come_first_and_more_between_tables_and_rows() -> None:
    needs = replace(NEEDS, footprint=replace(FOOTPRINT, features=20), more_features=60)
    least = 1230 + 7 + 40 + 20
    assert needs.split(least + 3 * PAGE + 60) == Split(1230, 7, 90, 3, PAGE, 20)
    assert needs.split(least + 6 * PAGE + 50) == Split(1230, 7, 90, 6, PAGE, 20)
    assert needs.split(least + 6 * PAGE + 50 + 70) == Split(1230, 17, 90, 6, PAGE, 80)
    assert needs.holding(6) == Split(1230, 7, 40, 6, PAGE, 20)
    assert needs.holding_all() == needs.split(10_000) == Split(1230, 407, 90, 6, PAGE, 80)


def test_tables_of_tasks_in_use_come_before_pages() -> None:
    budget = NEEDS.holding(3).total
    assert NEEDS.split(budget, tables=40) == NEEDS.split(budget) == Split(1230, 7, 40, 3, PAGE)
    assert NEEDS.split(budget, tables=41) == Split(1230, 7, 90, 2, PAGE)
    assert NEEDS.split(budget - 60, tables=50) == Split(1230, 7, 80, 2, PAGE)


def test_an_arena_takes_what_it_has_whether_it_is_used_or_not() -> None:
    budget = NEEDS.holding_all().total - NEEDS.more_rows
    assert NEEDS.split(budget, capacity=2).slots == 2
    few = replace(NEEDS, pages=2, more_rows=0)
    assert few.split(budget).tables == 90
    assert few.split(budget, capacity=6, taken=6) == Split(1230, 7, 90, 2, PAGE)
    assert few.split(budget - 1, capacity=6, taken=6) == Split(1230, 7, 89, 2, PAGE)


def test_a_device_has_all_tables_and_staging_in_any_budget() -> None:
    there = replace(NEEDS, staging=500, kv_reserve=60)
    assert there.holding(2) == Split(1230 + 500 + 60, 7, 90, 2, PAGE)


@given(any_needs(), st.integers(0, 5000), st.integers(0, 600), st.integers(0, 40))
def test_the_parts_never_exceed_the_budget(needs: MemoryNeeds, more: int, tables: int, capacity: int) -> None:
    tables = min(tables, needs.footprint.all_tables)
    budget = needs.holding(0, tables=tables).total + more
    split = needs.split(budget, tables=tables, capacity=capacity)
    assert split.total <= budget
    assert split.tables >= max(tables, needs.footprint.largest_table)
    assert split.rows >= needs.footprint.rows
    assert split.features >= needs.footprint.features
    assert split.slots <= min(needs.pages, capacity)


@given(any_needs(), st.integers(0, 5000), st.integers(0, 500), st.integers(0, 600))
def test_a_larger_budget_never_has_fewer_rows_or_slots(needs: MemoryNeeds, budget: int, more: int, tables: int) -> None:
    small, large = (needs.split(size, tables=tables) for size in (budget, budget + more))
    assert small.rows <= large.rows
    assert small.features <= large.features
    assert small.slots <= large.slots


@given(any_needs(), st.data(), st.integers(0, 600))
def test_the_smallest_budget_holds_its_pages_and_a_byte_less_does_not(
    needs: MemoryNeeds, data: st.DataObject, tables: int
) -> None:
    tables = min(tables, needs.footprint.all_tables)
    pages = data.draw(st.integers(1, needs.pages))
    least = needs.holding(pages, tables=tables)
    split = needs.split(least.total, tables=tables)
    assert (split.slots, split.rows, split.features) == (pages, least.rows, needs.footprint.features)
    assert needs.split(least.total - 1, tables=tables).slots < pages


@given(any_needs(), st.integers(0, 5000))
def test_nobody_has_a_use_for_more_than_all(needs: MemoryNeeds, more: int) -> None:
    everything = needs.holding_all()
    assert needs.split(everything.total + more) == everything
    assert everything.slots == needs.pages
    assert needs.split(everything.total - 1) != everything
