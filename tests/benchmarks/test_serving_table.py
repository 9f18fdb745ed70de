"""The table of the serving benchmark, from rows that are made up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.serving.__main__ import Row, line, table, verdict
from benchmarks.serving.clients import Tally

KNOWN = Row(
    what="trace",
    order="arrival",
    patience=2.0,
    linger=0.0,
    budget=2**20,
    most_bytes=2**20,
    requests=1200,
    refused=0,
    failed=0,
    wrong=0,
    switches=300,
    p50=0.2,
    p99=3.0,
    p99_bound=4.0,
    longest_wait=3.5,
    longest_gap=2.5,
    bound=None,
    command="python -m benchmarks.serving",
    commit="abc",
)


def row(**changes: Any) -> Row:
    return replace(KNOWN, **changes)


def test_the_grouping_with_the_fewest_switches_within_the_bound_counts() -> None:
    rows = [
        row(),
        row(order="grouped", switches=150),
        row(order="grouped", linger=1.0, switches=60, p99=4.0),
        row(order="grouped", linger=2.0, switches=30, p99=4.1),
    ]
    said = "first come makes 300 switches; grouped, with `--linger 1`, 60: 5.0 × fewer (3 asked)."
    assert verdict(rows) == f"Within 4 s for 99 %: {said}"


@pytest.mark.parametrize("lost", ["refused", "failed", "wrong"])
def test_who_loses_requests_keeps_no_bound(lost: str) -> None:
    assert not row(**{lost: 1}).keeps
    assert verdict([row(**{lost: 1}), row(order="grouped")]).startswith("First come doesn't keep within 4 s")
    assert verdict([row(), row(order="grouped", **{lost: 1})]) == "No grouping keeps within 4 s for 99 %."


def test_the_crowd_is_no_row_of_the_table() -> None:
    found = table(
        [row(what="crowd", order="grouped", p99_bound=None, requests=7), row(), row(order="grouped", p99=5.0)]
    )
    assert found.splitlines()[2:4] == [
        "| first come |  | 1,200; 0, 0, 0 | 300 | 0.20 s | 3.00 s | 2.50 s | yes |",
        "| grouped | 0 s | 1,200; 0, 0, 0 | 300 | 0.20 s | 5.00 s | 2.50 s | **no** |",
    ]


def test_a_run_in_which_nothing_was_answered_is_a_row_that_says_so() -> None:
    tally = Tally(refused=7, failed=["503 not ready"])
    assert (tally.p50, tally.p99, tally.longest_wait) == (None, None, None)
    none = row(requests=0, refused=tally.refused, failed=1, p50=tally.p50, p99=tally.p99, longest_wait=None)
    assert not none.keeps
    assert not replace(none, refused=0, failed=0).keeps
    assert "0 answered, 7 refused, 1 failed, 0 wrong; 300 switches; p50 –, p99 –, waited at most –," in line(none)
    assert "| first come |  | 0; 7, 1, 0 | 300 | – | – | 2.50 s | **no** |" in table([none])


def test_half_of_the_answers_took_no_longer_than_the_median() -> None:
    tally = Tally(seconds=[3.0, 1.0, 2.0], waits={"a": [0.5], "b": [0.25, 0.75]})
    assert (tally.p50, tally.p99, tally.longest_wait) == (2.0, 2.0, 0.75)


def test_servers_that_loaded_nothing_have_no_ratio() -> None:
    pytest.importorskip("ray")
    from benchmarks import ray_serving

    robin = ray_serving.Row("round-robin", 0.5, None, 0, 0, 9, 0, 0, 1000, 2, None, None, "python", "abc")
    idle = replace(robin, routing="affinity", queue_weight=1.0, bytes_loaded=0)
    assert "fewer" not in ray_serving.line(idle, robin)
    assert "9 refused" in ray_serving.line(idle, robin)
