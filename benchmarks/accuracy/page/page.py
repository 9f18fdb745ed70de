"""Writes the page ``docs/accuracy.md`` and its plots.

python -m benchmarks.accuracy.page --json docs/accuracy.json --out docs/accuracy.md
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from jinja2 import Environment, StrictUndefined

from benchmarks.accuracy import rows as row_file
from benchmarks.accuracy.page.domains import DOMAINS, Domain
from benchmarks.accuracy.page.plot import NAMES, frontier
from benchmarks.accuracy.page.points import Point, find, gather
from benchmarks.accuracy.page.simpler import simpler_does
from benchmarks.accuracy.page.tables import frontier_table, goals_table, summary_table, task_table
from benchmarks.accuracy.rows import Row

HERE = Path(__file__).parent


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
            plot = frontier(own, domain.metric, domain.depth, log_metric=domain.lower)
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
        summary=summary_table(points),
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
