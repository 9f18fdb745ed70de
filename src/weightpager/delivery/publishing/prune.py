"""Removing old versions from a repository, and what nothing refers to any more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from weightpager.delivery.names import OBJECTS, PACKS, TARGETS, object_path, pack_ids_path, pack_path
from weightpager.delivery.publishing.repository import alone
from weightpager.delivery.publishing.roles import Roles
from weightpager.delivery.publishing.written_file import storage_errors
from weightpager.delivery.version_file import VersionFile


@dataclass(frozen=True)
class Pruned:
    """What a repository has lost, or would lose.

    Attributes:
        versions: as ``NAME VERSION``.
        files: how many, signed metadata of old states included.
        bytes: of them.
    """

    versions: list[str]
    files: int
    bytes: int


def prune(repository: Path, key_folder: Path, keep: int, *, dry_run: bool = False) -> Pruned:
    """Remove versions that no channel shows, but the newest ones, and files that nothing refers to any more.

    A device that is bringing such a version when it goes is told that a file is missing, and gets the newest one at
    its next pull. Versions that devices have stay with them.

    Args:
        repository: directory.
        key_folder: that has the keys of targets, snapshot and timestamp.
        keep: versions of each bundle that stay beside those that channels show; those that were published last.
        dry_run: only say what would go.

    Raises:
        ConfigError: a key is missing; nothing has been removed.
        DeliveryError: the repository can't be read or written.
    """
    with alone(repository):
        roles = Roles(repository, key_folder)
        gone = _old_versions(roles, keep)
        if gone and not dry_run:
            roles.remove_targets(gone)
        doomed = list(_unused(repository, roles, gone))
        with storage_errors():
            size = sum(path.stat().st_size for path in doomed)
            for path in () if dry_run else doomed:
                path.unlink()
        return Pruned([f"{version.name} {version.version}" for version in gone.values()], len(doomed), size)


def _old_versions(roles: Roles, keep: int) -> dict[str, VersionFile]:
    """Versions that no channel shows and that aren't among the newest ones, by target."""
    known = {path: VersionFile.parse(roles.target(path) or b"") for path in roles.targets.targets}
    shown = {version.key for path, version in known.items() if "/channels/" in path}
    others: dict[str, list[str]] = {}
    for path, version in known.items():
        if "/versions/" in path and version.key not in shown:
            others.setdefault(version.name, []).append(path)
    old = {
        path for paths in others.values() for path in sorted(paths, key=roles.written_at)[: max(0, len(paths) - keep)]
    }
    return {path: version for path, version in sorted(known.items()) if path in old}


def _unused(repository: Path, roles: Roles, gone: Iterable[str]) -> Iterator[Path]:
    """Files that no version but these refers to. A pack's ids come before it: with them it is whole."""
    left = set(roles.targets.targets) - set(gone)
    used = {roles.target_file(path).relative_to(repository).as_posix() for path in left}
    for path in left:
        version = VersionFile.parse(roles.target(path) or b"")
        for pack in version.packs:
            used |= {pack_ids_path(pack.blake3), pack_path(pack.blake3)}
        used |= {object_path(piece.blake3) for file in version.files.values() for piece in file.pieces if piece.blake3}
    with storage_errors():
        for folder in (TARGETS, PACKS, OBJECTS):
            for file in sorted((repository / folder).rglob("*")):
                if file.is_file() and file.relative_to(repository).as_posix() not in used:
                    yield file
    yield from roles.superseded()
