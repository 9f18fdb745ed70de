"""How many threads native code uses."""

from __future__ import annotations

import os
import sys

from weightpager.errors import ConfigError
from weightpager.machine.cores import usable_cores

_MOST = 256


def thread_count() -> int:
    """``WEIGHTPAGER_THREADS``; else torch's where it is loaded; else ``OMP_NUM_THREADS``; else the usable cores.

    Raises:
        ConfigError: ``WEIGHTPAGER_THREADS`` is no number from 1 to 256.
    """
    asked = os.environ.get("WEIGHTPAGER_THREADS", "")
    if asked:
        if not asked.isdecimal() or not 1 <= int(asked) <= _MOST:
            raise ConfigError(f"WEIGHTPAGER_THREADS: expected 1 to {_MOST}, got {asked!r}")
        return int(asked)
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):  # it may be half imported
        return int(torch.get_num_threads())
    theirs = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # of nested levels the first
    if theirs.isdecimal() and int(theirs) >= 1:
        return min(int(theirs), _MOST)
    return min(usable_cores(), _MOST)
