"""The README is short, and its figures are those that were measured."""

from __future__ import annotations

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks import readme
from benchmarks.device import measured

PAGE = (readme.ROOT / "README.md").read_text(encoding="utf-8")
DOCS = readme.ROOT / "docs"


def headings(page: str) -> list[list[str]]:
    """The cells of each table's first line."""
    lines = page.splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line, below in pairwise(lines)
        if line.startswith("|") and re.fullmatch(r"\|( ?:?-+:? ?\|)+", below)
    ]


def test_the_readme_has_the_figures_of_the_files_beside_it() -> None:
    assert readme.filled(PAGE, readme.figures(DOCS)) == PAGE, "run `python -m benchmarks.readme`"


def test_the_readme_is_read_in_a_minute() -> None:
    """Whoever adds a line takes another away."""
    assert len(PAGE.splitlines()) <= 120
    assert len(PAGE.split()) <= 900
    assert len(headings(PAGE)) == 1


@pytest.mark.parametrize("page", ["../README.md", "results.md", "accuracy.md"])
def test_headings_of_columns_are_short(page: str) -> None:
    found = [heading for table in headings((DOCS / page).read_text(encoding="utf-8")) for heading in table]
    assert found
    assert [heading for heading in found if len(heading.split()) > 6] == []


def test_a_process_says_what_row_faults_took_in_it(tmp_path: Path) -> None:
    for name in ("demo.json", "accuracy.json", "device.json"):
        shutil.copy(DOCS / name, tmp_path)
    content = json.loads((tmp_path / "device.json").read_bytes())
    rows = content["texts"]["rows"]
    rows["native_tasks"].pop("ms_of_rows_per_text", None)
    rows["native_all_blocks"] = {**rows["native_tasks"], "ms_of_rows_per_text": 1.26}
    (tmp_path / "device.json").write_text(json.dumps(content))
    assert measured.read(tmp_path / "device.json")["texts"].rows.keys() == rows.keys()
    ours, blocks, onnx, *decoder = readme.processes(tmp_path).splitlines()[2:8]
    assert "| 0.4 ms |" in ours  # the demo's
    assert "| 1.3 ms |" in blocks
    assert all("| none |" in line for line in (onnx, *decoder))


def test_a_page_without_a_place_for_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a place for the table 'demo', found none"):
        readme.filled("nothing", {"demo": "| a |"})
