"""Processes in which torch, transformers and what only they need aren't installed. Imports none of them itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MISSING = ("torch", "transformers", "triton", "datasets", "pandas", "pyarrow", "scipy", "yaml")


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code where these packages can't be imported."""
    return subprocess.run(_command(code), capture_output=True, text=True, check=False, env=_environment())


def weightpager(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command there."""
    return python(_main(arguments))


@contextmanager
def started(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """The command while it runs there; it is told to end behind the block."""
    with subprocess.Popen(_command(_main(arguments)), stdout=subprocess.PIPE, text=True, env=_environment()) as process:
        try:
            yield process
        finally:
            process.terminate()


def _main(arguments: tuple[str | Path, ...]) -> str:
    argv = ["weightpager", *map(str, arguments)]
    return f"sys.argv = {argv!r}\nfrom weightpager.cli import main; main()"


def _command(code: str) -> list[str]:
    return [sys.executable, "-c", f"import sys; sys.modules.update(dict.fromkeys({_MISSING!r}))\n{code}"]


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "WEIGHTPAGER_BACKEND"}
