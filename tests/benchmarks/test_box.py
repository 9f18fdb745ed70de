"""The box: all ways run on tiny bundles in the budget, no row is measured again, and the page says what holds."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import row_file
from benchmarks.box import __main__ as box
from benchmarks.box import page
from benchmarks.box.boxes import METHODS, OF_A_ROUND, parts
from benchmarks.box.requests import HABITS, kind_of, trace
from benchmarks.box.rows import OF_RESIDENT, PEERS, RESIDENT, SHARES, Row
from weightpager.bundle import Bundle
from weightpager.errors import BudgetError
from weightpager.kernels.choice import NATIVE
from weightpager.runtime.budget import largest_budget, smallest_budget


@pytest.fixture(scope="module")
def bundles(assistant_bundle: Path, writer_bundle: Path, watcher_bundle: Path) -> dict[str, Bundle]:
    paths = assistant_bundle, writer_bundle, watcher_bundle
    return {path.stem: Bundle.open(path) for path in paths}


def test_a_trace_comes_from_its_seed(bundles: Mapping[str, Bundle]) -> None:
    found = trace(bundles, 60, seed=1)
    assert found == trace(bundles, 60, seed=1)
    assert found != trace(bundles, 60, seed=2)
    assert len(found) == 60
    assert {request.bundle for request in found} == set(bundles)
    assert {kind_of(bundle) for bundle in bundles.values()} == {"search", "writing", "frames"} <= set(HABITS)
    assert {request.task for request in found if request.bundle == "writer"} <= set(bundles["writer"].tasks)


def test_a_budget_is_split_by_what_bundles_can_use_but_every_task_has_room(bundles: Mapping[str, Bundle]) -> None:
    most = {name: largest_budget(bundle) for name, bundle in bundles.items()}
    least = {name: smallest_budget(bundle) for name, bundle in bundles.items()}
    assert parts(bundles, sum(most.values())) == most
    for budget in (sum(least.values()), sum(least.values()) + 10_000):
        found = parts(bundles, budget)
        assert all(found[name] >= least[name] for name in bundles)
        assert budget - len(bundles) < sum(found.values()) <= budget
    with pytest.raises(BudgetError):
        parts(bundles, sum(least.values()) - 1)


@pytest.mark.slow
@pytest.mark.skipif(not NATIVE, reason="not built")
def test_every_way_on_tiny_bundles(
    bundles: Mapping[str, Bundle], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("WEIGHTPAGER_BACKEND")
    monkeypatch.setattr(box, "SHARES", (0.5, 1.0))
    monkeypatch.setattr(sys, "argv", ["box"])
    json, paths = tmp_path / "box.json", [bundle.path for bundle in bundles.values()]

    def run() -> list[Row]:
        box.main(paths, json, storage="100MB/s", requests=6, rounds=1)
        return row_file.read(json, Row)

    rows = run()
    traces = [row for row in rows if row.kind == "trace"]
    assert {row.method for row in traces} == set(METHODS)
    assert len(rows) == 2 * len(METHODS) + len(OF_A_ROUND) + 1 + 2 * len(bundles)
    for row in traces:
        for figures in row.figures or []:
            assert figures["violations"] == 0
            assert figures["held_bytes"] <= row.budget
            assert figures["wait"] > 0
            assert figures["requests"] == 6
    all_fits = [row.figures for row in traces if row.share == 1.0]
    assert all(figures and figures[0]["opened"] == 0 for figures in all_fits)
    (steps,) = (row.figures for row in rows if row.kind == "steps")
    assert steps
    assert {figures["returns"] for figures in steps} == {0, 1}
    assert all(figures["bytes"] > 0 for figures in steps)
    monkeypatch.setattr(box, "measured", lambda spec: pytest.fail(f"{spec} was measured already"))
    assert run() == rows


def test_the_page_says_what_was_asked_and_reached() -> None:
    rows = [row for method in METHODS for share in SHARES for row in _traces(method, share)]
    rows += [
        _row(
            "steps",
            "ours",
            1.0,
            [
                {"bundle": place, "returns": 0, "over": 1.1}
                if place != 1
                else {"bundle": 1, "returns": 1, "over": 1.3, "over_warm": 1.4}
                for place in range(3)
            ],
        )
    ]
    rows += [
        _row("alone", method, 0.75, [{"wait": 1.0, "answer": 2.0, "peak_bytes": 90, "held_bytes": 40}])
        for method in ("Models", "Engine")
    ]
    rows += [
        _row("rounds", method, 0.5, [{"wait": wait, "answer": 1.0, "read_bytes": 3}])
        for method, wait in (("ours", 2.0), ("ours, ahead", 1.0))
    ]
    for method, wait in ((PEERS, 0.0), ("ours", 2e-3)):
        kept = {"wait": wait, "answer_search": 3e-3, "answer_writing": 5e-2, "process_bytes": 7 << 20}
        rows += [_row(RESIDENT, method, share, [kept]) for share in OF_RESIDENT]
    found = page.page(rows, "box.json")
    lines = [line for line in found.splitlines() if line.startswith("| ")]
    assert "| wait at half, over forked | 0.3 | 0.25 | met |" in lines
    assert "| wait at half, over split | 0.7 | can't run: the largest tasks of all need more |  |" in lines
    assert "| switch to one | 1.15 | 1.10 | met |" in lines
    assert "| return of two | 1.2 | 1.30 | **not met** |" in lines
    assert "| rounds: wait at half, prefetching over not | – | 0.50 |  |" in lines
    assert "| process | 1.1 | 1.33 | **not met** |" in lines
    assert "| memory above the budget, times | 0 | 0 | met |" in lines
    assert "| ours, half | 2.0 | 3.0 | 50.0 | 7 |" in lines
    assert f"| {PEERS} | 0.0 | 3.0 | 50.0 | 7 |" in lines
    assert "One, two and three share a budget" in found


def _traces(method: str, share: float) -> list[Row]:
    wait = 1.0 if method == "ours" else 4.0
    figures = {
        "wait": wait, "wait_p95": wait, "answer": 1.0, "requests": 9, "read_bytes": 1, "opened": 0, "held_bytes": 1,
        "violations": 0, "process_bytes": 200, "peak_bytes": 200,
    }  # fmt: skip
    row = _row("trace", method, share, [figures])
    return [
        replace(row, repeat=repeat, figures=None if method == "split by hand" else row.figures) for repeat in (0, 1)
    ]


def _row(kind: str, method: str, share: float, figures: list[dict[str, float]]) -> Row:
    names = ["one", "two", "three"] if kind != "alone" else ["one"]
    return Row(kind, method, share, 100, 0, 3e8, names, figures, "python -m benchmarks.box", "abc", "a CPU")
