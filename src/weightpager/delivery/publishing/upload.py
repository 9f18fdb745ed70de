"""Copying a repository to a store that a URL names, so that no device ever meets half of a state."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs

from weightpager.delivery.publishing.repository import alone
from weightpager.delivery.version_file import METADATA, OBJECTS, PACKS, TARGETS
from weightpager.errors import ConfigError, DeliveryError
from weightpager.progress import Progress, silent

STAGES = (
    f"{PACKS}/*.pack",
    f"{PACKS}/*.ids",
    f"{OBJECTS}/*",
    f"{TARGETS}/*",
    f"{METADATA}/*.targets.json",
    f"{METADATA}/*.snapshot.json",
    f"{METADATA}/*.root.json",
    f"{METADATA}/timestamp.json",
)
"""A repository's files in the order in which they are copied: what a file refers to is there before it."""

_TIMESTAMP = STAGES[-1]
_AT_ONCE = 64
"""Files that a store is given at once; many stores take them side by side."""


@dataclass(frozen=True)
class Uploaded:
    """What a store has got.

    Attributes:
        files, bytes: number and bytes of the files that it lacked, the timestamp included.
        there: number of files that it had already.
        removed: number of files that the repository has no more.
    """

    files: int
    bytes: int
    there: int
    removed: int


def upload(repository: Path, url: str, *, delete: bool = False, progress: Progress = silent) -> Uploaded:
    """Copy what a store, by a URL as fsspec takes it, lacks of a repository.

    All files but the timestamp keep their content for ever, so those of equal size are there. The timestamp comes last:
    until then devices get the state before. Whatever stops it, the same call goes on. ``delete`` removes files that the
    repository has no more, once the store has the new state.

    Raises:
        ConfigError: the URL is none of a store that can be written.
        DeliveryError: the store refused something, or has a state of another copy that is as new or newer.
    """
    with alone(repository), _store_errors(url):
        store, root = _open(url)
        _check_newer(repository, store, root, url)
        here = {path: (repository / path).stat().st_size for path in _files(repository)}
        there = _listed(store, root)
        lacking = [path for path in here if there.get(path) != here[path] or path == _TIMESTAMP]
        for first, last in _batches(lacking):
            _put(store, repository, root, lacking[first:last])
            progress("upload", last, len(lacking))
        doomed = sorted(path for path in there if path not in here and _stage(path) is not None) if delete else []
        for path in doomed:
            store.rm_file(f"{root}/{path}")
        return Uploaded(len(lacking), sum(here[path] for path in lacking), len(here) - len(lacking), len(doomed))


def _open(url: str) -> tuple[Any, str]:
    """The store, and the repository's path in it."""
    if "://" not in url:
        raise ConfigError(f"url: expected one such as s3://bucket/repository, found {url!r}; a directory needs no copy")
    if url.partition("://")[0] in ("http", "https"):
        raise ConfigError(f"url: expected a store that can be written, such as s3://, sftp:// or gs://, found {url!r}")
    try:
        store, root = url_to_fs(url)
    except ImportError as error:
        raise ConfigError(f"url: {url}: {error}") from error
    except ValueError as error:
        known = ", ".join(sorted(fsspec.available_protocols()))
        raise ConfigError(f"url: expected a store of fsspec ({known}), found {url!r}") from error
    return store, str(root).rstrip("/")


def _put(store: Any, repository: Path, root: str, paths: list[str]) -> None:
    for folder in sorted({path.rpartition("/")[0] for path in paths}):
        store.makedirs(f"{root}/{folder}", exist_ok=True)
    store.put([str(repository / path) for path in paths], [f"{root}/{path}" for path in paths])


def _check_newer(repository: Path, store: Any, root: str, url: str) -> None:
    """Devices never go back: an older timestamp would only keep them from what is newer.

    Two timestamps of one number come from copies that went on apart. Their files have the same names.
    """
    path = f"{root}/{_TIMESTAMP}"
    if not store.exists(path):
        return
    theirs, ours = (
        json.loads(text)["signed"] for text in (store.cat_file(path), (repository / _TIMESTAMP).read_bytes())
    )
    number, found = ours["version"], theirs["version"]
    if found > number or (found == number and theirs != ours):
        raise DeliveryError(
            f"{url}: expected a state no newer than the repository's, {number}, found {'another ' * (found == number)}"
            f"{found}: another copy of {repository} has been uploaded; go on from that one"
        )


def _files(repository: Path) -> list[str]:
    """A repository's files in the order in which they are copied."""
    paths = (path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file())
    stages = {path: stage for path in paths if (stage := _stage(path)) is not None}
    return sorted(stages, key=lambda path: (stages[path], path))


def _stage(path: str) -> int | None:
    return next((number for number, pattern in enumerate(STAGES) if fnmatchcase(path, pattern)), None)


def _listed(store: Any, root: str) -> Mapping[str, int]:
    """Bytes of each file of the store, by its path in the repository."""
    if not store.exists(root):
        return {}
    store.invalidate_cache()
    entries: dict[str, dict[str, Any]] = store.find(root, detail=True)
    return {path.removeprefix(root).lstrip("/"): int(entry["size"]) for path, entry in entries.items()}


def _batches(paths: list[str]) -> Iterator[tuple[int, int]]:
    """Where batches begin and end: none has files of two stages."""
    first = 0
    for number, path in enumerate(paths):
        if number - first == _AT_ONCE or _stage(path) != _stage(paths[first]):
            yield first, number
            first = number
    if paths:
        yield first, len(paths)


@contextmanager
def _store_errors(url: str) -> Iterator[None]:
    try:
        yield
    except (ConfigError, DeliveryError):
        raise
    except Exception as error:  # stores raise what their libraries raise
        raise DeliveryError(f"{url}: the store refused it: {error}; the same command goes on from here") from error
