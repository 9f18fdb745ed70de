"""What a compile found out, as it is printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from weightpager.bundle import Bundle
from weightpager.bundle.report.compile_report import read_report
from weightpager.cli.commands import inspect


def test_a_heavy_loss_is_told_where_nothing_was_compared(
    assistant_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = read_report(Bundle.open(assistant_bundle))
    heavy = {"loss_interval": (56.0, 100.0), "items": 15, "texts": 15}
    ruined = [task.model_copy(update=heavy) for task in whole.tasks]
    inspect.advice(None, whole.model_copy(update={"tasks": ruined, "controls": [], "compare": "none"}))
    told = " ".join(capsys.readouterr().out.split())
    assert "controls skipped" in told
    assert "animal loses at least 56 points" in told
    assert "chance" not in told
