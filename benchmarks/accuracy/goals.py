"""What was asked of the accuracy, and whether the rows say that it was reached.

The figures were fixed before anything was measured. What has no rows is not measured, which is never reached.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, log

from benchmarks.accuracy.rows import Point, average, find, paired
from benchmarks.accuracy.settings import WITH_LOW_RANK

_SLACK = 1e-6
"""Rows have four digits; their differences carry noise behind them."""


@dataclass(frozen=True)
class Verdict:
    """Whether a method reached a figure, and what was found. ``reached`` is None where rows are missing."""

    reached: bool | None
    found: str

    @property
    def word(self) -> str:
        return {True: "yes", False: "no", None: "not measured"}[self.reached]


Judge = Callable[[Sequence[Point], str], Verdict]
"""Judges the points for a method of ours."""


@dataclass(frozen=True)
class Goal:
    """A figure that was asked for.

    Attributes:
        domain: A, B or D.
        fraction: of resident bytes.
        asked: in words.
        judge: decides it.
        methods: of ours that it is asked of.
    """

    domain: str
    fraction: float
    asked: str
    judge: Judge
    methods: tuple[str, ...] = ("ours", "ours_private")


NOT_MEASURED = Verdict(None, "")


def _near_dense(fraction: float, points_lost: float, overlap: float = 0.0, worst: float | None = None) -> Judge:
    def judge(points: Sequence[Point], method: str) -> Verdict:
        ours = find(points, "A", fraction, method, "finetune")
        if ours is None or (worst is not None and not ours.tasks):
            return NOT_MEASURED
        reached = ours.loss() <= points_lost + _SLACK and ours.overlap >= overlap - _SLACK
        found = f"{-ours.loss():+.2f}{_seeds(ours)}"
        if overlap:
            found += f", overlap {ours.overlap:.3f}"
        if worst is not None:
            task = max(ours.tasks, key=ours.loss)
            reached = reached and ours.loss(task) <= worst + _SLACK
            found += f", {task} {-ours.loss(task):+.2f}"
        return Verdict(reached, found)

    return judge


def _above_shared(fraction: float, gain: float, *, beyond_spread: bool = False, control: str = "shared_mask") -> Judge:
    def judge(points: Sequence[Point], method: str) -> Verdict:
        pair = _pair(points, "A", fraction, method, control)
        if pair is None:
            return NOT_MEASURED
        ours, shared = pair
        gained = 100 * (ours.value() - shared.value())
        found = f"{gained:+.2f}{_seeds(ours)}"
        if not beyond_spread:
            return Verdict(gained >= gain - _SLACK, found)
        if len(ours.seeds) < 2:
            return Verdict(None, f"{found}: one seed has no spread")
        apart = 100 * (min(ours.values) - max(shared.values))
        return Verdict(gained >= gain - _SLACK and apart > 0, f"{found}; our worst seed {apart:+.2f} to its best")

    return judge


def _near_quantised(fraction: float, points_lost: float, quantised: str) -> Judge:
    def judge(points: Sequence[Point], method: str) -> Verdict:
        ours = find(points, "A", fraction, method, "finetune")
        other = next((point for point in points if (point.domain, point.method) == ("A", quantised)), None)
        pair = paired(ours, other) if ours and other else None
        if pair is None:
            return NOT_MEASURED
        lost = 100 * (pair[1].value() - pair[0].value())
        return Verdict(lost <= points_lost + _SLACK, f"{-lost:+.2f}{_seeds(pair[0])}")

    return judge


def _near_whole(fraction: float, points_lost: float, share: float) -> Judge:
    def judge(points: Sequence[Point], method: str) -> Verdict:
        pair = _pair(points, "A", fraction, method, "per_task_checkpoint")
        if pair is None or pair[1].bytes_per_switch == 0:
            return NOT_MEASURED
        ours, whole = pair
        lost = 100 * (whole.value() - ours.value())
        loaded = ours.bytes_per_switch / whole.bytes_per_switch
        reached = lost <= points_lost + _SLACK and loaded <= share + _SLACK
        return Verdict(reached, f"{-lost:+.2f}{_seeds(ours)}, {loaded:.0%} of the bytes")

    return judge


def _closed_form(fraction: float, points_lost: float) -> Judge:
    def judge(points: Sequence[Point], method: str) -> Verdict:
        ours = find(points, "A", fraction, method, "closed-form")
        if ours is None:
            return NOT_MEASURED
        return Verdict(ours.loss() <= points_lost + _SLACK, f"{-ours.loss():+.2f}{_seeds(ours)}")

    return judge


def _reported(fraction: float) -> Judge:
    def judge(points: Sequence[Point], method: str) -> Verdict:
        ours = find(points, "A", fraction, method, "finetune")
        return NOT_MEASURED if ours is None else Verdict(True, f"{-ours.loss():+.2f}{_seeds(ours)}")

    return judge


def _perplexity(fraction: float, ratio: float) -> Judge:
    def judge(points: Sequence[Point], method: str) -> Verdict:
        ours = find(points, "B", fraction, method, "finetune")
        if ours is None or not ours.tasks:
            return NOT_MEASURED
        gaps = {task: log(ours.value(task) / ours.dense(task)) for task in ours.tasks}
        worst = max(gaps, key=lambda task: gaps[task])
        mean = exp(average(gaps.values()))
        return Verdict(mean <= ratio + _SLACK, f"{mean:.3f} ×{_seeds(ours)}, {worst} {exp(gaps[worst]):.3f} ×")

    return judge


def _gap_closed(fraction: float, share: float) -> Judge:
    def judge(points: Sequence[Point], method: str) -> Verdict:
        tuned = find(points, "B", fraction, method, "finetune")
        refitted = find(points, "B", fraction, "ours", "closed-form")
        pair = paired(tuned, refitted) if tuned and refitted else None
        if pair is None or not pair[0].tasks or pair[0].tasks != pair[1].tasks:
            return NOT_MEASURED
        ours, before = pair
        gap = sum(log(before.value(task) / before.dense(task)) for task in before.tasks)
        left = sum(log(ours.value(task) / ours.dense(task)) for task in ours.tasks)
        if gap <= 0:
            return Verdict(left <= 0, "closed-form leaves no gap")
        return Verdict(1 - left / gap >= share - _SLACK, f"{1 - left / gap:.0%} of the gap{_seeds(ours)}")

    return judge


def _share_of_dense(fraction: float, least: float, domain: str = "D", recover: str = "finetune") -> Judge:
    def judge(points: Sequence[Point], method: str) -> Verdict:
        ours = find(points, domain, fraction, method, recover)
        return (
            NOT_MEASURED
            if ours is None
            else Verdict(ours.value() >= least - _SLACK, f"{ours.value():.3f}{_seeds(ours)}")
        )

    return judge


def _each_of_dense(fraction: float, least: float, domain: str, recover: str) -> Judge:
    """No task's share of the dense model is less."""

    def judge(points: Sequence[Point], method: str) -> Verdict:
        ours = find(points, domain, fraction, method, recover)
        if ours is None:
            return NOT_MEASURED
        worst, task = min((ours.value(task) / ours.dense(task), task) for task in ours.tasks)
        return Verdict(worst >= least - _SLACK, f"{task} {worst:.3f}{_seeds(ours)}")

    return judge


def _beside(
    fraction: float, gain: float, control: str, at: float, domain: str = "D", recover: str = "finetune"
) -> Judge:
    """Of shares of the dense model: at least so much above a control, which may have other bytes."""

    def judge(points: Sequence[Point], method: str) -> Verdict:
        ours, other = find(points, domain, fraction, method, recover), find(points, domain, at, control, recover)
        pair = paired(ours, other) if ours and other else None
        if pair is None:
            return NOT_MEASURED
        gained = pair[0].value() - pair[1].value()
        return Verdict(gained >= gain - _SLACK, f"{gained:+.3f}{_seeds(pair[0])}")

    return judge


_FOUR_BITS = ("ours_int4", "ours_private_int4")
_UNTRAINED, _ALONE = "closed-form", ("ours_int4",)
"""The model of domain E is trained before; least squares keep what it knows."""

GOALS = (
    Goal("A", 0.25, "mean within 1.5 points of dense, at an overlap of at least 0.6", _near_dense(0.25, 1.5, 0.6)),
    Goal(
        "A",
        0.25,
        "at least 1.0 point above one shared mask, beyond the spread of the seeds",
        _above_shared(0.25, 1.0, beyond_spread=True),
    ),
    Goal(
        "A",
        0.25,
        "within 0.5 points of whole checkpoints per task, at half of their bytes per switch or less",
        _near_whole(0.25, 0.5, 0.5),
    ),
    Goal("A", 0.15, "at least 2 points above one shared mask", _above_shared(0.15, 2.0)),
    Goal("A", 0.15, "within 3 points of dense", _near_dense(0.15, 3.0)),
    Goal("A", 0.1, "reported", _reported(0.1)),
    Goal("A", 0.5, "within 0.5 points of dense, no task more than 1.5 below", _near_dense(0.5, 0.5, worst=1.5)),
    Goal("A", 0.5, "closed-form alone: within 4 points of dense", _closed_form(0.5, 4.0), ("ours",)),
    Goal("A", 0.07, "at most 0.2 points below dense in int4", _near_quantised(0.07, 0.2, "int4"), _FOUR_BITS),
    Goal(
        "A",
        0.07,
        "at least 1.0 point above one shared mask in int4",
        _above_shared(0.07, 1.0, control="shared_mask_int4"),
        _FOUR_BITS,
    ),
    Goal("A", 0.14, "at most 0.3 points below dense", _near_dense(0.14, 0.3), _FOUR_BITS),
    Goal("A", 0.035, "at most 1.5 points below dense", _near_dense(0.035, 1.5), _FOUR_BITS),
    Goal("B", 0.7, "perplexity at most 1.15 × dense", _perplexity(0.7, 1.15), ("ours",)),
    Goal(
        "B",
        0.5,
        "fine-tuning closes half of the log-perplexity gap that closed-form leaves",
        _gap_closed(0.5, 0.5),
        ("ours",),
    ),
    Goal("D", 0.14, "at least 0.97 of the dense model", _share_of_dense(0.14, 0.97), _FOUR_BITS),
    Goal(
        "D",
        0.14,
        "at most 0.01 below an int4 base with a low-rank part for each task, at half of its bytes",
        _beside(0.14, -0.01, "low_rank_int4", WITH_LOW_RANK),
        _FOUR_BITS,
    ),
    Goal("D", 0.07, "at least 0.90 of the dense model", _share_of_dense(0.07, 0.90), ("ours_int4",)),
    Goal(
        "D",
        0.07,
        "at least 0.05 above one shared mask in int4",
        _beside(0.07, 0.05, "shared_mask_int4", 0.07),
        ("ours_int4",),
    ),
    Goal("E", 0.14, "at least 0.98 of the dense model", _share_of_dense(0.14, 0.98, "E", _UNTRAINED), _ALONE),
    Goal("E", 0.14, "no task below 0.95 of the dense model", _each_of_dense(0.14, 0.95, "E", _UNTRAINED), _ALONE),
    Goal(
        "E",
        0.14,
        "at least 0.01 above one shared mask in int4",
        _beside(0.14, 0.01, "shared_mask_int4", 0.14, "E", _UNTRAINED),
        _ALONE,
    ),
)
"""All that was asked."""


def _pair(points: Sequence[Point], domain: str, fraction: float, ours: str, other: str) -> tuple[Point, Point] | None:
    one = find(points, domain, fraction, ours, "finetune")
    two = find(points, domain, fraction, other, "finetune")
    return paired(one, two) if one and two else None


def _seeds(point: Point) -> str:
    return f" ({len(point.seeds)} seed{'s' if len(point.seeds) > 1 else ''})"


@dataclass(frozen=True)
class Domain:
    """How the tasks of one domain are told about.

    Attributes:
        letter: A, B or D.
        title: what they are.
        about: the model and its data, in a sentence or two.
        metric: what the values are.
        form: of a value.
        lower: whether lower is better.
        by_task: the fractions of which every task is shown.
        relative: whether values are shares of the dense model's.
        depth: how far below the dense model's value the picture reaches; what lies deeper is named.
    """

    letter: str
    title: str
    about: str
    metric: str
    form: str
    lower: bool
    by_task: tuple[float, ...]
    relative: bool = False
    depth: float = 0.1

    @property
    def short(self) -> str:
        """What the summary says of a method."""
        return "share of dense" if self.relative else "points to dense"

    def against_dense(self, point: Point) -> str:
        """Points of a hundred, or how many times the dense perplexity."""
        return f"{point.value() / point.dense():.3f} ×" if self.lower else f"{-point.loss():+.2f}"

    def losses(self, point: Point) -> list[float]:
        """What each seed loses against its dense model: points of a hundred, or percent of perplexity."""
        sign = -1 if self.lower else 1
        return [100 * sign * (row.dense - row.value) / (row.dense if self.lower else 1) for row in point.means]

    def lost(self, point: Point) -> float:
        return average(self.losses(point))

    def value(self, point: Point) -> str:
        """The mean over seeds, and the worst and the best seed if there are several."""
        mean = self.form.format(point.value())
        if len(point.values) == 1:
            return mean
        ends = sorted(point.values, reverse=self.lower)
        return f"{mean} ({self.form.format(ends[0])} to {self.form.format(ends[-1])})"


DOMAINS = (
    Domain(
        "A",
        "six text tasks on an encoder",
        "all-MiniLM-L6-v2 and six labelled tasks, at most 8,000 texts to learn from and 2,000 to be measured on.",
        "accuracy",
        "{:.4f}",
        False,
        (0.25, 0.07),
    ),
    Domain(
        "B",
        "four language models on a decoder",
        "SmolLM2-135M-Instruct, whose weights come in 4 bits and are dequantised before anything else; Python, news, "
        "fiction and German in windows of 256 tokens, measured on 40,000 characters each. German has 5,000, and 17,000 "
        "to learn from: its figures are rough.",
        "perplexity",
        "{:.2f}",
        True,
        (0.7, 0.5),
    ),
    Domain(
        "D",
        "six tasks that write",
        "SmolLM2-135M-Instruct and six narrow jobs: UI strings into German (chrF), case and punctuation (token F1), "
        "titles of mails (ROUGE-L), spoken numbers and dates in digits (exact match), functions by a docstring's first "
        "line (ROUGE-L), and a sentiment as a word (exact match). At most 2,000 rows to learn from and 200 to be "
        "measured on; answers are written greedily. A mean is of values as shares of the dense model's. The dense "
        "model is trained for 480 steps, all methods for as many more, private blocks for another 40 a task.",
        "share of the dense model",
        "{:.3f}",
        False,
        (0.14, 0.07),
        relative=True,
        depth=0.3,
    ),
    Domain(
        "E",
        "seven questions about pictures of roads",
        "A vision-language model of DINOv2-S, a connector and SmolLM2-135M, trained on rendered roads: nothing it "
        "sees is a photograph. SmolLM2 comes in 4 bits and is dequantised before anything else; whether DINOv2 was "
        "tuned for saliency, for which its file was made, is not known. Colour of the traffic light, vehicle ahead, "
        "place in the lane, distance of the obstacle, free lanes, persons and bicycles, each answered in a word or "
        "two (exact match); 8,000 scenes to learn from, 200 to be measured on. The picture tower keeps as large a "
        "share of its blocks as the language model, the same ones for all tasks; bytes are those of both.",
        "share of the dense model",
        "{:.3f}",
        False,
        (0.14, 0.07),
        relative=True,
        depth=0.3,
    ),
)
