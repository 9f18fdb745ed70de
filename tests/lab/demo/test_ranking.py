"""Who wins at what: the sentence and the figures say what the rows say, whoever wins."""

from __future__ import annotations

from typing import Any

import pytest

from weightpager_lab.demo.result import (
    OURS,
    DemoSwitch,
    Resident,
    budgets,
    line,
    memory_figures,
    switch_figures,
    verdict,
)

MIB = 2**20


def row(name: str, mib: float, metric: float, ms: float | None = 0.0, **changes: Any) -> Resident:
    read = MIB if ms else 0
    plain = Resident(
        name=name,
        bytes=round(mib * MIB),
        paged_bytes=MIB,
        mean_bytes_per_switch=read,
        mean_metric=metric,
        ms_per_switch=ms,
    )
    return plain.model_copy(update=changes)


DENSE = row("dense in int8", 23, 0.82)
INT4 = row("dense in int4", 18, 0.815)
MASK = row("one shared mask in int4", 6, 0.77)
RELOADED = row("own sparse int4 per task, weights reloaded", 14, 0.81, ms=3.0)
ALL = row("weightpager, everything resident", 9, 0.81, ms=None, mean_bytes_per_switch=0)


def test_the_best_rival_is_the_smallest_that_loses_no_more() -> None:
    rows = [row(OURS, 6, 0.81, ms=1.0), ALL, DENSE, INT4, MASK, RELOADED]
    assert memory_figures(rows) == {
        "memory.weights_vs_best_rival": pytest.approx(6 / 14),
        "memory.weights_vs_best_that_never_loads": pytest.approx(6 / 18),
        "memory.weights_vs_best_of_other_tools": pytest.approx(6 / 14),
    }
    said = verdict(rows)
    assert "Memory: weightpager wins, 6.0 MiB of weights, 0.43 × of the least" in said
    assert "(own sparse int4 per task, weights reloaded, 14.0 MiB)" in said
    assert "accuracy: dense in int8 wins, 1.0 points above weightpager, in 23.0 MiB" in said
    assert "(as accurate: weightpager, everything resident, 9.0 MiB; dense in int4, 18.0 MiB)" in said
    assert "of what loads, weightpager wins, 1 ms, 3.0 × faster than own sparse" in said


def test_a_bundle_of_all_blocks_is_a_rival_but_no_other_tool() -> None:
    bundle = row("dense in int4, a bundle of all blocks", 8, 0.815, is_bundle=True)
    figures = memory_figures([row(OURS, 6, 0.81, ms=1.0), ALL, DENSE, INT4, bundle, RELOADED])
    assert figures["memory.weights_vs_best_rival"] == figures["memory.weights_vs_best_that_never_loads"] == 6 / 8
    assert figures["memory.weights_vs_best_of_other_tools"] == pytest.approx(6 / 14)


def test_who_beats_us_is_named() -> None:
    rows = [row(OURS, 29, 0.81, ms=3.0), DENSE, INT4, MASK, row("own sparse, reloaded", 28, 0.81, ms=2.0)]
    assert memory_figures(rows)["memory.weights_vs_best_rival"] == pytest.approx(29 / 18)
    said = verdict(rows)
    assert "Memory: dense in int4 wins, 18.0 MiB of weights for at least as much accuracy" in said
    assert "of what loads, own sparse, reloaded wins, 2 ms, 1.5 × faster than weightpager" in said


def test_where_all_others_lose_more_there_is_no_ratio() -> None:
    rows = [row(OURS, 6, 0.9, ms=1.0), DENSE, MASK]
    assert memory_figures(rows) == {}
    said = verdict(rows)
    assert "since all others lose more accuracy" in said
    assert "accuracy: weightpager wins, 0.900" in said
    assert "switching: nothing was timed" in said


def test_switches_are_compared_over_all_pairs() -> None:
    def switch(ms: float, own: float, whole: float, raw: float | None = None) -> DemoSwitch:
        return DemoSwitch(
            from_task="a",
            to_task="b",
            bytes=1,
            ms=ms,
            gbps=1.0,
            whole_sparse_bytes=1,
            whole_sparse_ms=own,
            own_checkpoint_bytes=1,
            own_checkpoint_ms=whole,
            dense_ms=9.0,
            raw_ms=raw,
        )

    assert switch_figures([switch(1.0, 4.0, 20.0), switch(3.0, 6.0, 20.0)]) == {
        "switch.ms_mean": 2.0,
        "switch.speedup_own_sparse_mean": 2.5,
        "switch.speedup_own_sparse_min": 2.0,
        "switch.speedup_own_sparse_whole_mean": 10.0,
    }
    found = switch_figures([switch(1.0, 4.0, 20.0, raw=0.5), switch(3.0, 6.0, 20.0, raw=1.5)])
    assert (found["switch.over_raw_reads"], found["switch.raw_ms_mean"]) == (2.0, 1.0)


def test_the_line_has_the_bundles_that_no_smaller_one_equals() -> None:
    half = row("weightpager, half of the blocks", 5.5, 0.82, ms=None, mean_bytes_per_switch=MIB)
    eighth = row("weightpager, an eighth of the blocks", 3, 0.79, ms=None, mean_bytes_per_switch=MIB)
    whole = row("dense in int4, a bundle of all blocks", 8, 0.815, is_bundle=True)
    eights = row("dense in int8, a bundle of all blocks", 12, 0.825, is_bundle=True)
    mask = row("one shared mask in int4", 3.2, 0.77, is_bundle=True)
    rows = [row(OURS, 4, 0.81, ms=1.0), ALL, half, eighth, whole, eights, mask, DENSE, INT4]
    assert line(rows) == [eighth, rows[0], half, eights]
    said = budgets(rows)
    assert "3 MiB hold an eighth of the blocks (0.790, 1.0 MiB); 5 MiB hold a quarter of the blocks (0.810" in said
    assert said.endswith(
        "8 MiB hold half of the blocks (0.820, 1.0 MiB); 16 MiB hold all blocks in int8 (0.825, nothing)."
    )
    assert "16 MiB" not in budgets([row for row in rows if row is not eights])  # no more than 8 MiB hold
    assert budgets([row(OURS, 40, 0.81, ms=1.0)]) == ""
