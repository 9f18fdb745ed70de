"""Processes in which torch, transformers and what only they need aren't installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_MISSING = ("torch", "transformers", "triton", "datasets", "pandas", "pyarrow", "scipy", "yaml")


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code where these packages can't be imported."""
    forbid = f"import sys; sys.modules.update(dict.fromkeys({_MISSING!r}))"
    command = [sys.executable, "-c", f"{forbid}\n{code}"]
    own = {name: value for name, value in os.environ.items() if name != "WEIGHTPAGER_BACKEND"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=own)


def weightpager(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command there."""
    argv = ["weightpager", *map(str, arguments)]
    return python(f"sys.argv = {argv!r}\nfrom weightpager.cli import main; main()")
