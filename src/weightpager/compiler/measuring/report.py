"""The report of a compile: a bundle's scores, and those of its controls, with what chance leaves open between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from weightpager.answers.score import Score
from weightpager.bundle.report.compile_report import DENSE, ControlScore
from weightpager.bundle.report.fill import over_read, page_fill
from weightpager.bundle.report.overlap import mean_overlap, overlap
from weightpager.bundle.report.paged_share import paged_share
from weightpager.compiler.measuring.measure import Written
from weightpager.compiler.resume.compile_run import CompileRun
from weightpager.compiler.selection.prepared import Prepared
from weightpager.evaluation import intervals
from weightpager.evaluation.measure import task_score


@dataclass(frozen=True)
class Control:
    """A simpler way to serve all tasks, measured.

    Attributes:
        name: its name in `ControlScore`.
        resident_bytes: bytes of paged weights that are in memory at any time.
        scores: the score that it reached, by task.
    """

    name: str
    resident_bytes: int
    scores: Mapping[str, Score]


def common_fields(written: Written, prepared: Prepared, run: CompileRun) -> dict[str, Any]:
    """The fields of a `CompileReport` that are found in the same way for every bundle.

    Args:
        written: the bundle.
        prepared: the tasks that were compiled.
        run: which has ended.
    """
    bundle = written.bundle
    share = paged_share(bundle)
    return {
        "tasks": [task_score(bundle, name, score, prepared.dense[name]) for name, score in written.scores.items()],
        "backend": written.backend,
        "mean_overlap": mean_overlap(overlap(bundle)),
        "page_bytes": bundle.page_bytes,
        "page_fill": page_fill(bundle),
        "over_read": over_read(bundle),
        "seconds": run.seconds,
        "peak_memory": run.peak_memory,
        "memory_bound": run.memory_bound,
        "threads": torch.get_num_threads(),
        "tied": {name: list(others) for name, others in prepared.source.tied.items()},
        "evenness": prepared.evenness,
        "paged_share": share.share,
        "not_paged": dict(share.others),
    }


def control_scores(
    controls: Sequence[Control], ours: Mapping[str, Score], dense: Mapping[str, Score]
) -> list[ControlScore]:
    """The controls' lines of the report.

    Args:
        controls: what was measured.
        ours: task → the bundle's own score on the same items.
        dense: task → that of the dense model that recovery set out from; where one among the controls was trained as
            long as the bundle, this is what losses are counted from.
    """
    dense = next((control.scores for control in controls if control.name == DENSE), dense)
    return [
        ControlScore(
            name=control.name,
            resident_bytes=control.resident_bytes,
            scores={task: score.value for task, score in control.scores.items()},
            intervals={task: intervals.of_score(score) for task, score in control.scores.items()},
            loss_intervals={
                task: intervals.of_gap(dense[task], score, dense[task]) for task, score in control.scores.items()
            },
            gap_intervals={
                task: intervals.of_gap(ours[task], score, dense[task]) for task, score in control.scores.items()
            },
        )
        for control in controls
    ]
