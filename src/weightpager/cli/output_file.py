"""A file that a command writes once its work is done. A file that can't be written is refused before the work."""

from __future__ import annotations

import os
from pathlib import Path

from weightpager.errors import ConfigError
from weightpager.machine.paths import has_directory


def check_writable(option: str, path: Path) -> None:
    """Check that a file can be written, as far as that shows without touching it.

    Raises:
        ConfigError: it can't be written; the text starts with ``option``.
    """
    target = Path(os.path.realpath(path))
    if not has_directory(target.parent):
        raise ConfigError(f"{option}: expected a directory to write into, but {target.parent} does not exist")
    try:
        target.lstat()
    except FileNotFoundError:
        place = target.parent
    except OSError as error:
        raise _refused(option, path, error) from error
    else:
        place = target
    if has_directory(target):
        raise ConfigError(f"{option}: expected a file to write, found the directory {path}; name a file in it")
    if not os.access(place, os.W_OK):
        raise ConfigError(f"{option}: expected a file to write, but {place} may not be written to; choose another")


def write_file(option: str, path: Path, text: str) -> None:
    """Write a file that `check_writable` has let pass.

    Raises:
        ConfigError: the storage refused it.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _refused(option, path, error) from error


def _refused(option: str, path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{option}: cannot write {path}: {error.strerror or error}; choose another file")
