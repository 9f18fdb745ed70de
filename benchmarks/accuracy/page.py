"""The page ``docs/accuracy.md`` and its plots, from the rows of the accuracy benchmark.

python -m benchmarks.accuracy.page --json docs/accuracy.json --out docs/accuracy.md
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from jinja2 import Environment, StrictUndefined

from benchmarks.accuracy import rows as row_file
from benchmarks.accuracy.goals import GOALS
from benchmarks.accuracy.plot import NAMES, QUANTISED, frontier, label
from benchmarks.accuracy.points import Point, find, gather
from benchmarks.accuracy.rows import Row
from weightpager.config import format_size

HERE = Path(__file__).parent
_OURS = ("ours", "ours_private", "ours_int8", "ours_int4", "ours_private_int4")
_NEEDS_NO_PAGING = ("shared_mask", "shared_mask_int8", "shared_mask_int4", "low_rank_int4", *QUANTISED)
_ABOUT = 1.125
"""int4 has 0.281 of the dense bytes, which a user who thinks of a quarter would still take."""


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
    """

    letter: str
    title: str
    about: str
    metric: str
    form: str
    lower: bool
    by_task: tuple[float, ...]

    def against_dense(self, point: Point) -> str:
        """Points of a hundred, or how many times the dense perplexity."""
        return f"{point.value() / point.dense():.3f} ×" if self.lower else f"{-point.loss():+.2f}"

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
    ),
)


def main(
    json: Annotated[Path, typer.Option(help="The rows that `python -m benchmarks.accuracy` wrote.")],
    out: Annotated[Path, typer.Option(help="The page to write; its plots are put beside it.")],
) -> None:
    """Write the accuracy page and its plots."""
    if not json.is_file():
        raise typer.BadParameter(f"expected a file of rows, found nothing at {json}", param_hint="--json")
    rows = row_file.read(json)
    points = gather(rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    for domain in DOMAINS:
        own = [point for point in points if point.domain == domain.letter]
        if own:
            plot = frontier(own, domain.metric, log_metric=domain.lower)
            (out.parent / plot_name(out, domain)).write_text(plot, encoding="utf-8")
    out.write_text(render(rows, json.name, out), encoding="utf-8")


def render(rows: Sequence[Row], json_name: str, out: Path) -> str:
    """The page's text.

    Args:
        rows: all that was measured.
        json_name: the file that they lie in, beside the page.
        out: where the page will lie; its plots are named after it.
    """
    points = gather(rows)
    environment = Environment(  # Markdown, not HTML: nothing to escape
        autoescape=False, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    template = environment.from_string((HERE / "accuracy_page.md.j2").read_text(encoding="utf-8"))
    return template.render(
        json_name=json_name,
        names=NAMES,
        goals=goals_table(points),
        domains=[_described(domain, points, out) for domain in DOMAINS],
        simpler=simpler_does(points),
        what_does_not_work=(HERE / "what_does_not_work.md").read_text(encoding="utf-8").strip(),
        commands=sorted({row.command for row in rows}),
        commits=sorted({row.commit for row in rows}),
    )


def plot_name(page: Path, domain: Domain) -> str:
    """The file of a domain's plot, beside the page."""
    return f"{page.stem}-{domain.letter}.svg"


def goals_table(points: Sequence[Point]) -> str:
    """What was asked and what was reached, by figure and by method."""
    lines = []
    for goal in GOALS:
        for method in goal.methods:
            verdict = goal.judge(points, method)
            lines.append(
                [goal.domain, f"{goal.fraction:g}", goal.asked, NAMES[method], verdict.word, verdict.found or "–"]
            )
    return _table(["domain", "a", "asked", "method", "reached", "found"], lines)


def frontier_table(points: Sequence[Point], domain: Domain) -> str:
    """Every method at every fraction, the most bytes first, the best first among equals."""
    sign = 1 if domain.lower else -1
    ordered = sorted(points, key=lambda point: (-point.fraction, sign * point.value()))
    against = "× dense" if domain.lower else "points to dense"
    header = ["a", "method", domain.metric, "dense", against, "seeds", "overlap", "per switch", "compile"]
    lines = [
        [
            f"{point.fraction:g}",
            label(point),
            domain.value(point),
            domain.form.format(point.dense()),
            domain.against_dense(point),
            str(len(point.seeds)),
            f"{point.overlap:.3f}",
            format_size(round(point.bytes_per_switch)),
            f"{point.compile_seconds / 60:.1f} min",
        ]
        for point in ordered
    ]
    return _table(header, lines)


def task_table(points: Sequence[Point], domain: Domain) -> str:
    """Every task under every method of one fraction; dense as the point with the most seeds has it."""
    order = list(NAMES)
    columns = sorted(points, key=lambda point: order.index(point.method))
    most = max(columns, key=lambda point: len(point.seeds))
    shown = [task for task in most.tasks if all(task in point.tasks for point in columns)]
    lines = [
        [task, domain.form.format(most.dense(task)), *(domain.form.format(point.value(task)) for point in columns)]
        for task in [*shown, "mean"]
    ]
    return _table(["task", "dense", *(label(point) for point in columns)], lines)


def simpler_does(points: Sequence[Point]) -> list[str]:
    """Where a method that needs no paging does as well as ours in about as few bytes, in words."""
    lines = []
    for domain in DOMAINS:
        own = [point for point in points if point.domain == domain.letter]
        for fraction in sorted({point.fraction for point in own if point.method in _OURS}, reverse=True):
            best = _best([point for point in own if point.fraction == fraction and point.method in _OURS], domain)
            rivals = [
                point for point in own if point.method in _NEEDS_NO_PAGING and point.fraction <= fraction * _ABOUT
            ]
            rival = _best(rivals, domain) if rivals else None
            if rival is None:
                continue
            wins = _best([best, rival], domain) is rival
            if wins or _reaches(rival, best, domain):
                lines.append(
                    f"Domain {domain.letter}, a = {fraction:g}: {label(rival)} at {rival.fraction:g} has "
                    f"{domain.metric} {domain.form.format(rival.value())}, {label(best)} "
                    f"{domain.form.format(best.value())}{'' if wins else ', which is less than seeds differ'}."
                )
    return lines


def _reaches(rival: Point, best: Point, domain: Domain) -> bool:
    """Whether a rival's best seed is as good as our worst."""
    return min(rival.values) <= max(best.values) if domain.lower else max(rival.values) >= min(best.values)


def _best(points: Sequence[Point], domain: Domain) -> Point:
    """The best value; of equal ones the last."""
    best = points[0]
    for point in points[1:]:
        if point.value() <= best.value() if domain.lower else point.value() >= best.value():
            best = point
    return best


def _described(domain: Domain, points: Sequence[Point], out: Path) -> dict[str, object]:
    own = [point for point in points if point.domain == domain.letter]
    by_task = []
    for fraction in domain.by_task:
        found = [find(own, domain.letter, fraction, method, "finetune") for method in NAMES]
        columns = [point for point in found if point is not None]
        if columns:
            by_task.append((f"{fraction:g}", task_table(columns, domain)))
    return {
        "letter": domain.letter,
        "title": domain.title,
        "about": domain.about,
        "metric": domain.metric,
        "plot": plot_name(out, domain),
        "frontier": frontier_table(own, domain) if own else "",
        "by_task": by_task,
    }


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *lines])


if __name__ == "__main__":
    typer.run(main)
