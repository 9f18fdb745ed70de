"""Directories of the cache that are built once and appear in one step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from weightpager.bundle.files.new_directory import new_directory
from weightpager.lab.samples.sample import SampleUnavailable

SCHEMA = 2  # raise it when the same archives would give other files


def key_of(**parts: object) -> str:
    """A short name for everything that decides what a directory of the cache contains."""
    described = json.dumps({"schema": SCHEMA, **parts}, sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """``target``; if it does not exist, what ``build`` writes into an empty directory is moved there when complete.

    Safe to call from several processes at once: the first to finish wins, and the others use its result.

    Raises:
        SampleUnavailable: the cache cannot be written; and whatever ``build`` raises, with nothing left behind.
    """
    if not target.is_dir():
        try:
            _build(target, build)
        except OSError as error:
            raise SampleUnavailable(f"{target} cannot be written: {error}") from error
    return target


def _build(target: Path, build: Callable[[Path], None]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with new_directory(target, nullcontext, replace=False) as temporary:
            build(temporary)
    except OSError:
        if not target.is_dir():  # else another process has built it meanwhile
            raise
