"""Make what the device's tests read: ``python tests/device/make_bundles.py FOLDER`` compiles and publishes bundles."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))
sys.path.insert(0, str(Path(__file__).parent.parent / "support" / "models"))

from transformers.utils import logging

import tiny
import weightpager as wp
from fleet import Place


def make(folder: Path) -> None:
    """The bundles that fixtures of the same names compile, and a repository of one of them."""
    logging.disable_progress_bar()
    tasks = {"assistant": tiny.assistant, "writer": tiny.writer, "camera": tiny.camera}
    for name, task_file in tasks.items():
        (folder / name).mkdir()
        wp.compile(task_file(folder / name), out=folder / name / f"{name}.bundle")
    (folder / "wordy").mkdir()
    with patch("weightpager.compiler.packing.rows.LEAST_BYTES", 4096):
        wp.compile(tiny.wordy(folder / "wordy"), out=folder / "wordy" / "wordy.bundle")
    Place.make(folder / "fleet").publish_in_two_versions(folder / "assistant" / "assistant.bundle", "weather")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
