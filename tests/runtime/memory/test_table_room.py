"""Whose block tables are expanded: tasks in use, then those used last, and never more than there is room for."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from weightpager.runtime.memory.table_room import TableRoom


@dataclass(eq=False)
class Tables:
    """Only remember whether they are expanded."""

    nbytes: int
    expanded: bool = False

    def expand(self) -> None:
        assert not self.expanded
        self.expanded = True

    def give_back(self) -> None:
        assert self.expanded
        self.expanded = False


def test_the_least_recently_used_go_first() -> None:
    room, (a, b, c) = TableRoom(20), [Tables(10) for _ in range(3)]
    for tables in (a, b, a, c):
        assert room.hold(tables)
        room.release(tables)
    assert [tables.expanded for tables in (a, b, c)] == [True, False, True]


def test_tables_in_use_stay() -> None:
    room, (a, b, c) = TableRoom(20), [Tables(10) for _ in range(3)]
    assert room.hold(a)
    assert room.hold(b)
    assert not room.hold(c)
    assert [tables.expanded for tables in (a, b, c)] == [True, True, False]
    assert (room.in_use, room.needed(c), room.needed(a)) == (20, 30, 20)
    room.release(b)
    assert room.hold(c)
    assert [tables.expanded for tables in (a, b, c)] == [True, False, True]


def test_what_is_borrowed_may_take_more_for_a_moment() -> None:
    room, a, b = TableRoom(10), Tables(10), Tables(10)
    assert room.hold(a)
    with pytest.raises(ValueError, match="stop"), room.borrowed(b):
        assert (b.expanded, room.taken) == (True, 20)
        raise ValueError("stop")
    assert (a.expanded, b.expanded, room.taken) == (True, False, 10)


def test_tables_that_nobody_asks_for_again_go() -> None:
    room, a = TableRoom(10), Tables(10)
    assert room.hold(a)
    room.release(a)
    room.forget(a)
    room.forget(a)
    assert (a.expanded, room.taken) == (False, 0)


class AnyHolds(RuleBasedStateMachine):
    """What holds after any sequence of holds, releases and sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.room = TableRoom(30)
        self.tables = [Tables(size) for size in (5, 10, 10, 20, 30)]
        self.holds: list[Tables] = []

    @rule(which=st.integers(0, 4))
    def hold(self, which: int) -> None:
        tables = self.tables[which]
        fits = sum(one.nbytes for one in {*self.holds, tables}) <= self.room.size
        assert self.room.hold(tables) == fits
        if fits:
            self.holds.append(tables)

    @rule(which=st.integers(0, 100))
    def release(self, which: int) -> None:
        if self.holds:
            self.room.release(self.holds.pop(which % len(self.holds)))

    @rule(size=st.integers(0, 80))
    def resize(self, size: int) -> None:
        self.room.resize(max(size, self.room.in_use))

    @invariant()
    def sound(self) -> None:
        assert all(tables.expanded for tables in self.holds)
        assert self.room.taken == sum(tables.nbytes for tables in self.tables if tables.expanded) <= self.room.size
        assert self.room.in_use == sum(tables.nbytes for tables in set(self.holds))
        assert all(self.room.has_one_user(tables) == (self.holds.count(tables) == 1) for tables in self.tables)


TestAnyHolds = AnyHolds.TestCase
