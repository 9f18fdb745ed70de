"""Where a contest's scores come from."""

from __future__ import annotations

from pathlib import Path

from weightpager.bundle import Bundle
from weightpager.bundle.report.compile_report import read_report
from weightpager.lab.contest.measure.scores import scores


def test_held_out_data_that_cannot_be_looked_at_is_not_measured_again(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    entries = [
        entry.model_copy(update={"eval": entry.eval and entry.eval.model_copy(update={"file": "/" + "a" * 300})})
        for entry in bundle.tasks.values()
    ]
    hidden = Bundle(bundle.path, bundle.manifest.model_copy(update={"tasks": entries}), bundle.index, bundle.placement)
    report = read_report(bundle)
    found, source = scores(hidden, report, again=True, progress=lambda *_: None)
    assert (found, source) == (report.tasks, "the compile")
