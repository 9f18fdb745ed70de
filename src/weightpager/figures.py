"""How a field of a report is shown as a metric: ``slots: int = field(metadata=gauge("slots", "Pages that fit."))``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FigureMetric:
    """How Prometheus sees a field of a report.

    Attributes:
        name: of the metric; of a counter without its ``_total``.
        words: its description.
        only_grows: whether it is a counter, else a gauge.
        by: where the field has parts, the label whose values are their names.
    """

    name: str
    words: str
    only_grows: bool = False
    by: str | None = None


def gauge(name: str, words: str, by: str | None = None) -> dict[str, FigureMetric]:
    """A field's metadata where its value may fall; a metric's name begins with ``weightpager_``."""
    return {"metric": FigureMetric(f"weightpager_{name}", words, by=by)}


def counter(name: str, words: str, by: str | None = None) -> dict[str, FigureMetric]:
    """A field's metadata where its value only grows, as of `gauge`."""
    return {"metric": FigureMetric(f"weightpager_{name}", words, only_grows=True, by=by)}
