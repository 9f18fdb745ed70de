"""Where a contest's scores come from."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from weightpager.bundle import Bundle
from weightpager.bundle.report.compile_report import read_report
from weightpager_lab.contest.prompt import scores


def test_held_out_data_that_cannot_be_looked_at_is_not_measured_again(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    entries = [
        replace(entry, eval=entry.eval and replace(entry.eval, file="/" + "a" * 300, blake3="0" * 64))
        for entry in bundle.tasks.values()
    ]
    hidden = Bundle(bundle.path, replace(bundle.manifest, tasks=entries), bundle.index, bundle.placement)
    report = read_report(bundle)
    found, source = scores(hidden, report, again=True, progress=lambda *_: None)
    assert (found, source) == (report.tasks, "the compile")
