"""A bundle's scores beside those of what could replace it, with what chance leaves open between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from weightpager.answers.evaluate import Score
from weightpager.bundle import Bundle
from weightpager.bundle.report.compile_report import DENSE, ControlScore, TaskScore
from weightpager.compiler.measuring import intervals


@dataclass(frozen=True)
class Control:
    """A simpler way to serve all tasks, measured.

    Attributes:
        name: as in `ControlScore`.
        resident_bytes: of paged weights, in memory at any time.
        scores: task → what it reached.
    """

    name: str
    resident_bytes: int
    scores: Mapping[str, Score]


def task_score(bundle: Bundle, name: str, found: Score, dense: Score | None = None) -> TaskScore:
    """A task's line of the report; ``dense`` is the dense model's score on the same items, if there is one."""
    entry = bundle.task(name)
    return TaskScore(
        name=name,
        metric=found.metric,
        dense=None if entry.dense is None else entry.dense.value,
        sparse=found.value,
        density=len(bundle.kept_locations(name)) * bundle.block_bytes / bundle.dense_bytes,
        items=found.items,
        texts=len(found.outcomes.counts),
        dense_interval=None if dense is None else intervals.of_score(dense),
        sparse_interval=intervals.of_score(found),
        loss_interval=None if dense is None else intervals.of_gap(dense, found, dense),
    )


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
