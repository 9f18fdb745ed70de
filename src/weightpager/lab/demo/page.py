"""The demo's page: one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from weightpager.config import format_size
from weightpager.lab.demo import plots
from weightpager.lab.demo.result import DemoResult


def render(result: DemoResult) -> str:
    """The page's HTML; it asks for nothing from outside."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"size": format_size, "fact": _fact}
    template = environment.from_string(
        files("weightpager.lab.demo").joinpath("page.html.j2").read_text(encoding="utf-8")
    )
    drawn = {
        name: Markup(draw(result))  # noqa: S704 - matplotlib escapes the text in its SVG
        for name, draw in (
            ("accuracy", plots.accuracy),
            ("switch_times", plots.switch_times),
            ("overlap_map", plots.overlap_map),
            ("load_map", plots.load_map),
            ("memory", plots.memory),
        )
    }
    shown = next((row.mean_metric for row in result.memory if row.ours), 0.0) - plots.SHOWN
    return template.render(result=result, plots=drawn, shown=shown)


def _fact(value: object) -> str:
    """A fact of the machine as people read it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_fact(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_fact, value))
    return "unknown" if value is None else str(value)
