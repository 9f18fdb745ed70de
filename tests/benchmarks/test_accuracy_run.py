"""What a run of the accuracy benchmark measures."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from benchmarks.accuracy.__main__ import main


def test_a_seed_that_no_fraction_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="0.07 with 0"):
        main(tmp_path / "rows.json", domain="D", fraction=[0.07], seed=1)
