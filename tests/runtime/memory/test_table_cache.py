"""Whose block tables are expanded: tasks in use, then those used last, and never more than there is room for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from weightpager.runtime.memory.memory_budget import TableCache


@dataclass(eq=False)
class Tables:
    """Only remember whether they are expanded."""

    nbytes: int
    expanded: bool = False

    @property
    def parts(self) -> tuple[Tables, ...]:
        return (self,)

    def expand(self) -> None:
        assert not self.expanded
        self.expanded = True

    def give_back(self) -> None:
        assert self.expanded
        self.expanded = False


def test_the_least_recently_used_go_first() -> None:
    cache, (a, b, c) = TableCache(20), [Tables(10) for _ in range(3)]
    for tables in (a, b, a, c):
        assert cache.hold(tables)
        cache.release(tables)
    assert [tables.expanded for tables in (a, b, c)] == [True, False, True]


def test_tables_in_use_stay() -> None:
    cache, (a, b, c) = TableCache(20), [Tables(10) for _ in range(3)]
    assert cache.hold(a)
    assert cache.hold(b)
    assert not cache.hold(c)
    assert [tables.expanded for tables in (a, b, c)] == [True, True, False]
    assert (cache.in_use, cache.needed(c), cache.needed(a)) == (20, 30, 20)
    cache.release(b)
    assert cache.hold(c)
    assert [tables.expanded for tables in (a, b, c)] == [True, False, True]


def test_what_is_borrowed_may_take_more_for_a_moment() -> None:
    cache, a, b = TableCache(10), Tables(10), Tables(10)
    assert cache.hold(a)
    with pytest.raises(ValueError, match="stop"), cache.borrowed(b):
        assert (b.expanded, cache.taken) == (True, 20)
        raise ValueError("stop")
    assert (a.expanded, b.expanded, cache.taken) == (True, False, 10)


def test_tables_that_nobody_asks_for_again_go() -> None:
    cache, a = TableCache(10), Tables(10)
    assert cache.hold(a)
    cache.release(a)
    cache.forget(a)
    cache.forget(a)
    assert (a.expanded, cache.taken) == (False, 0)


@dataclass(frozen=True)
class Several:
    """Tables of several parts."""

    parts: tuple[Tables, ...]


def test_a_part_that_tasks_share_is_expanded_once_and_stays_while_one_uses_it() -> None:
    shared, a, b = Tables(10), Tables(5), Tables(5)
    cache, first, second = TableCache(20), Several((shared, a)), Several((shared, b))
    assert cache.hold(first)
    assert cache.needed(second, first) == 15
    assert cache.needed(second) == 20
    assert cache.hold(second)
    assert cache.taken == 20
    cache.release(first)
    cache.forget(first)
    assert (shared.expanded, a.expanded, b.expanded) == (True, False, True)
    assert not cache.hold(Several((Tables(10),)))
    assert cache.in_use == 15
    cache.release(second)
    cache.forget(second)
    assert cache.taken == 0


class AnyHolds(RuleBasedStateMachine):
    """What holds after any sequence of holds, releases and sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = TableCache(30)
        self.parts = [Tables(size) for size in (5, 10, 10, 20, 30)]
        shared, other, *rest = self.parts
        self.tables = [Several((shared, other)), Several((shared, rest[0])), *(Several((part,)) for part in rest)]
        self.holds: list[Several] = []

    @rule(which=st.integers(0, 4))
    def hold(self, which: int) -> None:
        tables = self.tables[which]
        needed = {part for one in (*self.holds, tables) for part in one.parts}
        fits = sum(part.nbytes for part in needed) <= self.cache.size
        assert self.cache.hold(tables) == fits
        if fits:
            self.holds.append(tables)

    @rule(which=st.integers(0, 100))
    def release(self, which: int) -> None:
        if self.holds:
            self.cache.release(self.holds.pop(which % len(self.holds)))

    @rule(size=st.integers(0, 80))
    def resize(self, size: int) -> None:
        self.cache.resize(max(size, self.cache.in_use))

    @invariant()
    def sound(self) -> None:
        users = Counter(part for tables in self.holds for part in tables.parts)
        assert all(part.expanded for part in users)
        assert self.cache.taken == sum(part.nbytes for part in self.parts if part.expanded) <= self.cache.size
        assert self.cache.in_use == sum(part.nbytes for part in users)
        for tables in self.tables:
            assert self.cache.has_one_user(tables) == any(users[part] == 1 for part in tables.parts)


TestAnyHolds = AnyHolds.TestCase
