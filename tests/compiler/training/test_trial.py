"""Trials of what is faster: whose turn it is, and what counts."""

from __future__ import annotations

import pytest

from weightpager.compiler.training.device import least_seconds


def test_calls_take_turns_and_the_first_turn_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    took = {"a": iter([0, 3, 2, 4]), "b": iter([1, 5, 7, 6])}
    order: list[str] = []
    now = [0.0]

    def call(name: str) -> None:
        order.append(name)
        now[0] += next(took[name])

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    assert least_seconds(lambda: call("a"), lambda: call("b"), times=3) == [2, 5]
    assert order == ["a", "b"] * 4
