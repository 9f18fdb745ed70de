"""Which pages tasks need, against plain sets, while tasks come and leave."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightpager.runtime.planning.pages import TaskPages

PAGES = 8

page_sets = st.sets(st.integers(0, PAGES - 1))


def array(pages: set[int]) -> np.ndarray:
    return np.array(sorted(pages), np.int64)


def differential(needs: list[set[int]]) -> float:
    """The mean number of pages that a task needs and another one lacks; tasks without pages don't count."""
    there = [need for need in needs if need]
    lacks = [len(one - other) for at, one in enumerate(there) for other in there[:at] + there[at + 1 :]]
    return float(np.mean(lacks)) if lacks else 0.0


@given(
    needs=st.lists(page_sets, min_size=1, max_size=4),
    steps=st.lists(st.one_of(page_sets, st.integers(0, 9)), max_size=12),
    numbers=st.lists(st.integers(0, 9), min_size=16, max_size=16),
    some=page_sets,
)
def test_they_are_those_of_the_tasks_that_are_there(
    needs: list[set[int]], steps: list[set[int] | int], numbers: list[int], some: set[int]
) -> None:
    tasks, model = TaskPages([array(need) for need in needs], PAGES), [set(need) for need in needs]
    there = list(range(len(needs)))
    for step in steps:
        if isinstance(step, set):
            there.append(tasks.add(array(step)))
            model.append(step)
        elif there:
            gone = there.pop(step % len(there))
            tasks.remove(gone)
            model[gone] = set()
        values = np.array(numbers[: len(model)], np.float64)
        users = [[task for task, need in enumerate(model) if page in need] for page in range(PAGES)]
        assert tasks.tasks == len(model)
        assert [set(tasks.of(task).tolist()) for task in range(len(model))] == model
        assert [set(tasks.needed_by(task).nonzero()[0].tolist()) for task in range(len(model))] == model
        every = tasks.needed_by_any(range(len(model)))
        assert set(every.nonzero()[0].tolist()) == set().union(*model)
        assert tasks.count(array(some)).tolist() == [len(need & some) for need in model]
        assert tasks.sums(values).tolist() == [sum(numbers[task] for task in users[page]) for page in range(PAGES)]
        greatest = [max((numbers[task] for task in users[page]), default=0) for page in sorted(some)]
        assert tasks.greatest(values, array(some)).tolist() == greatest
        assert tasks.differential == pytest.approx(differential(model))


def test_all_pages_are_looked_at_once_however_many_tasks_come_and_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = TaskPages([array({task}) for task in range(4)], PAGES)
    unique, calls = np.unique, []

    def counting(*args: object, **options: object) -> object:
        calls.append(args)
        return unique(*args, **options)

    monkeypatch.setattr(np, "unique", counting)
    for task in range(4):
        tasks.remove(task)
    for task in range(4):
        tasks.add(array({task, task + 1}))
    for _ in range(2):
        assert tasks.sums(np.ones(8)).tolist() == [1, 2, 2, 2, 1, 0, 0, 0]
    assert len(calls) == 1


def test_tasks_of_the_past_take_no_memory_by_the_page() -> None:
    pages = 100_000
    tasks = TaskPages([array({0, 1}), array({1, 2})], pages)
    tracemalloc.start()
    try:
        for number in range(0, 100, 2):
            tasks.remove(number)
            tasks.remove(number + 1)
            tasks.add(array({0, 1}))
            tasks.add(array({1, 2}))
        assert tracemalloc.get_traced_memory()[0] < 2 * pages
    finally:
        tracemalloc.stop()
    assert tasks.sums(np.ones(102))[:3].tolist() == [1, 2, 1]
