"""Where held-out data lies: what a bundle says of it, and what this machine remembers.

A bundle goes to others, who need no names of this machine's folders. So the place itself stays here, in the user's
cache: a link, named after the data's hash.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from weightpager.bundle.format.manifest import EvalData, TaskEntry
from weightpager.bundle.reader import Bundle
from weightpager.config import cache_dir, cache_limit
from weightpager.errors import ConfigError
from weightpager.machine.paths import has_directory, has_file


def portable(task: TaskEntry, folder: Path, *, remember: bool = True) -> TaskEntry:
    """A task's entry in a bundle in ``folder``: data is named by its path from there, or by name if it lies elsewhere.

    To ``remember`` it, the user's cache keeps the place, unless that keeps nothing.
    """
    if task.eval is None or not Path(task.eval.file).is_absolute():
        return task
    path = Path(os.path.normpath(task.eval.file))
    real = Path(os.path.realpath(path.parent), path.name)
    if remember:
        _remember(task.eval, path)
    name = real.relative_to(folder).as_posix() if real.is_relative_to(folder) else path.name
    return replace(task, eval=replace(task.eval, file=name))


def held_out_file(bundle: Bundle, stated: EvalData) -> Path | None:
    """A task's held-out data, or a folder of images: as remembered, beside the bundle, or in the working directory.

    What is remembered goes first: it belongs to the data's hash, where other data may have the same name. None where
    there is nothing at any of these places.
    """
    folder = Path(os.path.realpath(bundle.path)).parent
    places = (*_remembered(stated), folder / stated.file, Path(stated.file))
    return next((place for place in places if has_file(place) or has_directory(place)), None)


def _remember(data: EvalData, path: Path) -> None:
    with suppress(OSError, ConfigError):  # then eval asks for it
        if cache_limit():
            link = _link(data)
            link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(path)


def _remembered(data: EvalData) -> list[Path]:
    with suppress(OSError, ConfigError):
        return [_link(data).readlink()]
    return []


def _link(data: EvalData) -> Path:
    return cache_dir() / "held-out" / data.blake3
