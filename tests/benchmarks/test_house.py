"""Figures of how the code is lived in that must not get worse unseen."""

from __future__ import annotations

from pathlib import Path

from benchmarks.house import calls_to_a_read, files_of_a_small_switch


def test_a_read_is_handed_on_within_nine_calls(assistant_bundle: Path) -> None:
    calls = calls_to_a_read(assistant_bundle)
    assert calls[0] == "engine.py: activate"
    assert calls[-1] == "native_reads.py: start"
    assert len(calls) <= 9


def test_a_small_switch_visits_few_files(assistant_bundle: Path) -> None:
    files = files_of_a_small_switch(assistant_bundle)
    assert "src/weightpager/runtime/paging/switch.py" in files
    assert len(files) <= 24, files
