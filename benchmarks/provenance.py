"""Where a figure comes from."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TypedDict

from weightpager.doctor.machine import commit_of, cpu_model


def command(module: str) -> str:
    """What was typed to run a benchmark; a path in the home directory as others would type it."""
    typed = shlex.join(["python", "-m", module, *sys.argv[1:]])
    return typed.replace(f"{Path.home()}/", "~/")


def commit() -> str:
    """Of the sources; "-dirty" behind it if they have been changed since, rows that benchmarks write aside."""
    return commit_of(Path()) or "unknown"


def cpu() -> str:
    """The model of this machine's processor."""
    return cpu_model(Path("/proc/cpuinfo").read_text(encoding="utf-8")) or "unknown"


class Origin(TypedDict):
    """All three, by the names that rows have for them."""

    cpu: str
    command: str
    commit: str


def origin(module: str) -> Origin:
    """Of what a module's command measures."""
    return {"cpu": cpu(), "command": command(module), "commit": commit()}
