"""Tables of the README are those of the measured figures."""

from __future__ import annotations

import pytest

from benchmarks import readme
from weightpager_lab.demo.result import OURS, ROW_FAULTS, Resident


def resident(name: str, size: int, read: int = 0, ms: float | None = 0.0) -> Resident:
    return Resident(
        name=name, bytes=size, paged_bytes=size, mean_bytes_per_switch=read, mean_metric=0.8, ms_per_switch=ms
    )


def test_the_readme_has_the_tables_of_the_figures_beside_it() -> None:
    page = (readme.ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.filled(page, readme.tables(readme.ROOT / "docs")) == page, "run `python -m benchmarks.readme`"


def test_ours_come_first_and_the_others_by_memory() -> None:
    lines = readme.demo_table(
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


def test_a_page_without_a_place_for_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a place for the table 'demo', found none"):
        readme.filled("nothing", {"demo": "| a |"})
