"""The Python sources of the running interpreter's standard library."""

from __future__ import annotations

import os
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from weightpager_lab.samples.items import Item, document
from weightpager_lab.samples.sample import SampleUnavailable

# Not the standard library; tests of it; tables that happen to be Python.
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "encodings", "pydoc_data"}


def sources() -> Iterator[Item]:
    """The modules that people wrote, one document each.

    Raises:
        SampleUnavailable: this interpreter has no sources, as when its library lies in a zip file.
    """
    root = Path(sysconfig.get_path("stdlib"))
    if not root.is_dir():
        raise SampleUnavailable(f"expected Python sources in {root}, got no directory")
    yield from read(root)


def read(root: Path) -> Iterator[Item]:
    """The modules below a directory, by name."""
    for directory, names, files in os.walk(root):
        names[:] = sorted(set(names) - _SKIPPED)
        for file in sorted(file for file in files if file.endswith(".py")):
            path = Path(directory, file)
            with tokenize.open(path) as module:
                text = module.read().strip()
            if text:
                yield document(text, f"python/{path.relative_to(root).as_posix()}")
