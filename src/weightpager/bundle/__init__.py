"""A bundle on disk: bytes and their validation, no policy, no torch. ``docs/bundle-format.md`` is its specification."""

from weightpager.bundle.format.block_table import BlockTable
from weightpager.bundle.format.manifest import (
    DenseScore,
    EvalData,
    Generation,
    Manifest,
    TaskEntry,
    TaskKind,
    WeightEntry,
)
from weightpager.bundle.format.page_file import PageIndex
from weightpager.bundle.reader import Bundle
from weightpager.bundle.writer import BundleWriter, writing

__all__ = [
    "BlockTable",
    "Bundle",
    "BundleWriter",
    "DenseScore",
    "EvalData",
    "Generation",
    "Manifest",
    "PageIndex",
    "TaskEntry",
    "TaskKind",
    "WeightEntry",
    "writing",
]
