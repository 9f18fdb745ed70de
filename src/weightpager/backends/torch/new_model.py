"""A model directory of transformers that is written anew: whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from weightpager.errors import ConfigError
from weightpager.machine.paths import has_directory


def free_target(out: str | Path) -> Path:
    """Where a directory shall be, as an absolute path.

    Raises:
        ConfigError: something is there already, or there is no directory to write it into.
    """
    target = Path(os.path.abspath(out))
    if os.path.lexists(target):
        raise ConfigError(f"out: {target} exists; choose another name")
    if not has_directory(target.parent):
        raise ConfigError(f"out: expected a directory to write into, but {target.parent} does not exist")
    return target


@contextmanager
def refusals(target: Path) -> Iterator[None]:
    """Turn what the storage refuses into a `ConfigError`."""
    try:
        yield
    except (OSError, SafetensorError, ValueError) as error:  # the last of settings that contradict each other
        raise ConfigError(f"out: cannot write {target}: {error}") from error
