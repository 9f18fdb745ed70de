"""Turns, medians and switches from a known state."""

from __future__ import annotations

from pathlib import Path

import pytest

from weightpager.engine import Engine
from weightpager_lab.timing import (
    LEAST_SECONDS,
    in_turns,
    intervals,
    leave_only,
    ratio,
    repeated,
    seconds_of,
    spread,
    time_switch,
)


def test_runs_take_turns_and_the_first_rounds_do_not_count() -> None:
    made: list[str] = []

    def run(name: str) -> float:
        made.append(name)
        return float(len(made))

    found = in_turns({name: lambda name=name: run(name) for name in "ab"}, 2, warm=1)  # type: ignore[misc]
    assert "".join(made) == "ababab"
    assert found == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_short_calls_are_timed_many_at_once() -> None:
    calls: list[int] = []
    run = repeated(lambda: calls.append(0))
    before = len(calls)
    assert before == 2
    assert 0 < run() < LEAST_SECONDS
    assert len(calls) > 100


def test_a_ratio_is_of_pairs_so_that_a_slow_minute_does_not_count() -> None:
    assert ratio([2.0, 200.0, 4.0], [1.0, 100.0, 2.0]) == (2.0, 2.0, 2.0)
    assert ratio([1.0, 2.0, 3.0], [1.0, 1.0, 1.0]) == pytest.approx((1.5, 2.0, 2.5))


def test_spreads() -> None:
    assert spread([]) is None
    assert spread([1.0, 2.0, 3.0]) == pytest.approx({"mean": 2.0, "p50": 2.0, "p95": 2.9, "p99": 2.98})


def test_the_first_item_has_no_interval() -> None:
    assert len(list(intervals("abc"))) == 2
    assert seconds_of(lambda: list(intervals([]))) >= 0


def test_a_switch_begins_with_the_task_that_is_left_alone(assistant_bundle: Path) -> None:
    with Engine.from_pretrained(assistant_bundle) as engine:
        a, b, *_ = engine.bundle.tasks
        pages = {task: set(engine.bundle.pages_of(task).tolist()) for task in (a, b)}
        engine.activate(b)
        turns: list[float] = []
        beside = {"one": lambda: turns.append(engine.report().switches[-1].bytes) or 1.0}
        found = time_switch(engine, a, b, 2, beside)
        assert found.pages == len(pages[b] - pages[a])
        assert found.beside == {"one": 1.0}
        assert found.raw_seconds is None
        first, second = turns
        assert first == found.bytes  # after the first switch
        assert second == len(pages[a]) * engine.bundle.page_bytes  # before the second one
        leave_only(engine)
        assert engine.report().resident_pages == 0
