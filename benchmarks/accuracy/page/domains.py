"""The domains of the accuracy benchmark, as its page tells of them."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.accuracy.page.points import Point, average


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
        """The mean of `losses`."""
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
)
