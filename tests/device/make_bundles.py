"""Compile the bundles of the device's tests into a folder: ``python tests/device/make_bundles.py FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

from transformers.utils import logging

import tiny
import weightpager as wp


def make(folder: Path) -> None:
    """The bundles that fixtures of the same names compile."""
    logging.disable_progress_bar()
    tasks = {"assistant": tiny.assistant, "writer": tiny.writer, "camera": tiny.camera}
    for name, task_file in tasks.items():
        (folder / name).mkdir()
        wp.compile(task_file(folder / name), out=folder / name / f"{name}.bundle")
    (folder / "wordy").mkdir()
    with patch("weightpager.compiler.rows.row_uses.LEAST_BYTES", 4096):
        wp.compile(tiny.wordy(folder / "wordy"), out=folder / "wordy" / "wordy.bundle")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
