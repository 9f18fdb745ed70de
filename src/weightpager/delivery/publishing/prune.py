"""Removing old versions from a repository, and what nothing refers to any more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from weightpager.delivery.publishing.repository import alone
from weightpager.delivery.publishing.roles import Roles, storage_errors
from weightpager.delivery.version_file import (
    OBJECTS,
    PACKS,
    TARGETS,
    VersionFile,
    object_path,
    pack_ids_path,
    pack_path,
)


@dataclass(frozen=True)
class Pruned:
    """What a repository has lost, or would lose.

    Attributes:
        versions: the versions that have gone, as ``NAME VERSION``.
        files: number of files, signed metadata of old states included.
    """

    versions: list[str]
    files: int
    bytes: int


def prune(repository: Path, key_folder: Path, keep: int, *, dry_run: bool = False) -> Pruned:
    """Remove versions that no channel shows, but the newest ones, and files that nothing refers to any more.

    A device that is bringing such a version when it goes is told that a file is missing, and gets the newest one at
    its next pull. Versions that devices have stay with them. ``keep`` of each bundle, those that were published last,
    stay beside those that channels show.

    Raises:
        ConfigError: a key of targets, snapshot or timestamp is missing; nothing has been removed.
        DeliveryError: the repository can't be read or written.
    """
    with alone(repository):
        roles = Roles(repository, key_folder)
        known = {path: VersionFile.parse(roles.content(path)) for path in roles.targets.targets}
        gone = {path: known.pop(path) for path in _old(known, roles, keep)}
        used = {path.relative_to(repository).as_posix() for path in map(roles.target_file, known)}
        if gone and not dry_run:
            roles.remove_targets(gone)
        doomed = [*_unused(repository, used.union(*map(_parts, known.values()))), *roles.superseded()]
        with storage_errors():
            size = sum(path.stat().st_size for path in doomed)
            for path in () if dry_run else doomed:
                path.unlink()
        return Pruned([f"{version.name} {version.version}" for version in gone.values()], len(doomed), size)


def _old(known: Mapping[str, VersionFile], roles: Roles, keep: int) -> list[str]:
    """Targets of versions that no channel shows and that aren't among the newest ones."""
    shown = {version.key for path, version in known.items() if "/channels/" in path}
    others: dict[str, list[str]] = {}
    for path, version in known.items():
        if "/versions/" in path and version.key not in shown:
            others.setdefault(version.name, []).append(path)
    return sorted(
        path for paths in others.values() for path in sorted(paths, key=roles.written_at)[: max(0, len(paths) - keep)]
    )


def _parts(version: VersionFile) -> set[str]:
    """Where a version's pages and pieces lie."""
    paths = {object_path(piece.blake3) for file in version.files.values() for piece in file.pieces if piece.blake3}
    for pack in version.packs:
        paths |= {pack_ids_path(pack.blake3), pack_path(pack.blake3)}
    return paths


def _unused(repository: Path, used: set[str]) -> Iterator[Path]:
    """Files that nothing refers to. A pack's ids come before it: with them it is whole."""
    with storage_errors():
        for folder in (TARGETS, PACKS, OBJECTS):
            for file in sorted((repository / folder).rglob("*")):
                if file.is_file() and file.relative_to(repository).as_posix() not in used:
                    yield file
