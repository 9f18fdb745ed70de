"""Where a figure comes from."""

from __future__ import annotations

import shlex
import subprocess
import sys


def command(module: str) -> str:
    """What was typed to run a benchmark."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def commit() -> str:
    """Of the sources; "-dirty" behind it if they have been changed since."""
    found = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"
