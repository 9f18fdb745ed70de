"""What the benchmark of prefetch has found, a row for each trace and policy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks import row_file
from weightpager.simulate.sizing import PREFETCH, REUSE

DRIVING = "driving"
"""The trace of the driving domain's bundle: the drive trace, in terms of its tasks."""

RIVALS: Mapping[str, str] = {
    "whole sparse checkpoints": "sparse_whole",
    "their paged weights only": "sparse_strict",
    "LRU of whole tasks": "sparse_lru",
}
"""Policy of a row → method of a contest."""


@dataclass(frozen=True)
class Row:
    """One trace under one policy.

    Attributes:
        trace: its name.
        entropy_bits: H(next | current) of its visits.
        f: the arena has room for the largest task and this share of what all tasks together need more.
        policy: what decides which pages come and go.
        switches: measured.
        wait_ms_mean, wait_ms_p99: of their waits.
        hit_rate: share of the pages to be loaded that were there already because they had been prefetched.
        wasted_bytes: prefetched and gone again before they were used.
        oracle_share: of what one who knows the future saves, against expected reuse; None where that is nothing.
        mode: virtual or real.
        command: that prints the row.
        commit: of the sources.
        cpu: of the machine; empty in rows of earlier versions.
    """

    trace: str
    entropy_bits: float
    f: float
    policy: str
    switches: int
    wait_ms_mean: float
    wait_ms_p99: float
    hit_rate: float
    wasted_bytes: int
    oracle_share: float | None
    mode: str
    command: str
    commit: str
    cpu: str = ""


def read(file: Path) -> list[Row]:
    return row_file.read(file, Row)


def speedups(rows: Iterable[Row]) -> dict[str, float]:
    """By flat key: how many times longer the real switches of a trace wait as people do it than with prefetch."""
    real = {(row.trace, row.policy): row.wait_ms_mean for row in rows if row.mode == "real"}
    return {
        f"prefetch.{trace}.speedup_{RIVALS[policy].removeprefix('sparse_')}_mean": waited / real[trace, PREFETCH]
        for (trace, policy), waited in real.items()
        if policy in RIVALS and (trace, PREFETCH) in real
    }


def shares(rows: Iterable[Row]) -> dict[str, float]:
    """By flat key: the real switches' mean wait with prefetch, as a share of that without."""
    real = {(row.trace, row.policy): row.wait_ms_mean for row in rows if row.mode == "real"}
    return {
        f"prefetch.{trace}.wait_share": ahead / real[trace, REUSE]
        for (trace, policy), ahead in real.items()
        if policy == PREFETCH and real.get((trace, REUSE))
    }


def line(row: Row) -> str:
    share = "" if row.oracle_share is None else f"  {row.oracle_share:5.0%} of the oracle's"
    return (
        f"{row.trace:12} f {row.f:<5} {row.policy:20} {row.mode:8} {row.wait_ms_mean:8.2f} ms  "
        f"99 % {row.wait_ms_p99:8.1f} ms  hits {row.hit_rate:4.0%}{share}"
    )
