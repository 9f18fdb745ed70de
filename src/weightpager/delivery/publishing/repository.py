"""A repository of signed bundles on a disk: made, extended, its keys replaced, its dates renewed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from weightpager.bundle.files.new_directory import locked, new_directory
from weightpager.delivery.publishing import roles
from weightpager.delivery.publishing.roles import ROLES, Roles, no_repository, remove_leftovers, storage_errors
from weightpager.delivery.version_file import METADATA, OBJECTS, PACKS, TARGETS
from weightpager.errors import ConfigError, DeliveryError
from weightpager.machine.paths import has_directory

_LOCK = ".lock"


@dataclass(frozen=True)
class Made:
    """A new repository: the root that devices need to trust it, and the folder of private keys."""

    root: Path
    keys: Path


def default_keys(repository: Path) -> Path:
    """Where keys lie if nothing else is said: beside the repository, which a web server must not give out."""
    return Path(f"{os.path.abspath(repository)}.keys")


def create(repository: Path, key_folder: Path, root_keys: int, threshold: int) -> Made:
    """Make an empty repository and its keys in directories that don't exist or are empty.

    The root role has so many keys, of which ``threshold`` must sign a new root.

    Raises:
        ConfigError: something is there already, or keys would lie inside the repository.
        DeliveryError: the storage refused it.
    """
    repository, key_folder = Path(os.path.abspath(repository)), Path(os.path.abspath(key_folder))
    if not 1 <= threshold <= root_keys:
        raise ConfigError(f"threshold: expected from 1 to {root_keys} keys that must sign, found {threshold}")
    if key_folder == repository or repository in key_folder.parents:
        raise ConfigError(f"keys: expected a folder outside of {repository}, which everybody reads, found {key_folder}")
    for path in (repository, key_folder):
        with storage_errors():
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise ConfigError(f"{path}: expected nothing there or an empty directory; choose another one")
            path.parent.mkdir(parents=True, exist_ok=True)
    with new_directory(key_folder, storage_errors, replace=False) as folder:
        signers = {
            role: roles.create_keys(folder, role, range(1, 1 + (root_keys if role == "root" else 1))) for role in ROLES
        }
        with new_directory(repository, storage_errors, replace=False) as made:
            roles.begin(made / METADATA, signers, {"root": threshold})
            for name in (TARGETS, PACKS, OBJECTS):
                (made / name).mkdir()
    key_folder.chmod(0o700)
    return Made(repository / METADATA / "1.root.json", key_folder)


@contextmanager
def alone(repository: Path) -> Iterator[None]:
    """Keep others from writing to a repository. Raises `DeliveryError` if somebody writes to it, or there is none."""
    if not has_directory(repository / METADATA):
        raise no_repository(repository)
    taken = DeliveryError(f"{repository}: expected to write alone, found another process that publishes; wait for it")
    with locked(repository / _LOCK, os.O_RDWR | os.O_CREAT, taken, storage_errors, mode=0o644):
        remove_leftovers(repository)
        yield


def refresh(repository: Path, key_folder: Path, also: list[str], days: int | None = None) -> dict[str, str]:
    """Sign timestamp and snapshot again, and the roles in ``also``, targets or root, so that nothing expires.

    Returns:
        The date on which each role's metadata expires now; timestamp and snapshot after ``days``.
    """
    with alone(repository):
        state = Roles(repository, key_folder, days)
        if "root" in also:
            state.renew_root()
        state.publish(targets="targets" in also)
        return {role: f"{getattr(state, role).expires:%Y-%m-%d}" for role in ROLES}


def rotate(repository: Path, key_folder: Path, role: str) -> list[Path]:
    """Replace all keys of a role, for which enough root keys and the role's own are needed. Returns the new files."""
    with alone(repository):
        return Roles(repository, key_folder).rotate(role)
