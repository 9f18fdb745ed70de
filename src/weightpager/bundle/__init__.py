"""A bundle on disk: bytes and their validation, no policy, no torch. ``docs/bundle-format.md`` is its specification.

Whatever reads or checks raises `BundleFormatError` where a file isn't what the format says. It names the file, the
first field that is wrong, what was expected and what was found. Functions here say what else they raise, or when.
"""

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
