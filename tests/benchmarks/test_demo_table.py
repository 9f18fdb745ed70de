"""The table of what the demo compares, from rows that are made up."""

from __future__ import annotations

from benchmarks.report.demo import demo_table
from weightpager_lab.demo.result import OURS, ROW_FAULTS, Resident


def resident(name: str, size: int, read: int = 0, ms: float | None = 0.0) -> Resident:
    return Resident(
        name=name, bytes=size, paged_bytes=size, mean_bytes_per_switch=read, mean_metric=0.8, ms_per_switch=ms
    )


def test_ours_come_first_and_the_others_by_memory() -> None:
    lines = demo_table(
        [
            resident("dense in int4", 3 << 20),
            resident("one shared mask", 1 << 20),
            resident(OURS, 2 << 20, 1 << 19, 1.25),
        ],
        {ROW_FAULTS: 0.41},
    ).splitlines()
    assert lines[2] == f"| **{OURS}** | **2.0 MiB** | 2.0 MiB | 0.800 | 512.0 KiB, 1.2 ms | 0.4 ms |"
    assert [line.split(" | ")[0] for line in lines[3:]] == ["| one shared mask", "| dense in int4"]
    assert lines[3].endswith("| nothing | nothing |")
