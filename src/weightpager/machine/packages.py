"""Which Python packages are here, without importing any."""

from __future__ import annotations

import sys
from importlib.util import find_spec


def is_installed(name: str) -> bool:
    """Whether a top-level package could be imported."""
    if name in sys.modules:
        return sys.modules[name] is not None  # None: somebody has forbidden it
    return find_spec(name) is not None
