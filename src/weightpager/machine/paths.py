"""Whether something is there: no, where nobody may look or the name is too long.

Unlike `Path.is_file` and `Path.is_dir`, which raise in that case before Python 3.14.
"""

from __future__ import annotations

import os
from pathlib import Path


def has_file(path: Path) -> bool:
    """Whether there is a regular file that can be seen."""
    return os.path.isfile(path)  # noqa: PTH113 - see above


def has_directory(path: Path) -> bool:
    """Whether there is a directory that can be seen."""
    return os.path.isdir(path)  # noqa: PTH112 - see above
