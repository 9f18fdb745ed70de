"""Key files: one private key each, as PEM, readable by their owner alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner

from weightpager.bundle.files.new_file import new_file
from weightpager.bundle.files.storage_errors import storage_errors_as
from weightpager.errors import ConfigError, DeliveryError
from weightpager.machine.paths import has_directory

RETIRED = "retired"
"""Folder for keys that no role knows any more."""


def create(folder: Path, role: str, numbers: Iterable[object]) -> list[CryptoSigner]:
    """Make key files ``ROLE-N.pem``. One that is there, which a killed command has left, is taken.

    Raises:
        DeliveryError: the storage refused one.
    """
    paths = [folder / f"{role}-{number}.pem" for number in numbers]
    return [_read(path) if path.exists() else _create(path) for path in paths]


def _create(path: Path) -> CryptoSigner:
    signer = CryptoSigner.generate_ed25519()
    with storage_errors_as(DeliveryError, f"the key {path}"), new_file(path, 0o600) as file:
        file.write(signer.private_bytes)
    return signer


def read(folder: Path) -> dict[str, tuple[Path, CryptoSigner]]:
    """The keys of a folder, by their ids in metadata.

    Raises:
        ConfigError: there is no such folder, or a file in it is no key.
    """
    if not has_directory(folder):
        raise ConfigError(f"keys: expected the folder of key files that 'publish init' made, found none at {folder}")
    by_id = {}
    for path in sorted(folder.glob("*.pem")):
        signer = _read(path)
        by_id[signer.public_key.keyid] = path, signer
    return by_id


def _read(path: Path) -> CryptoSigner:
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"keys: expected a private key in {path}, found none that can be read: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"keys: expected an Ed25519 key in {path}, found another kind")
    return CryptoSigner(key)


def retire(folder: Path, ids: Iterable[str]) -> None:
    """Move the files of these keys away, so that nobody signs with them by mistake."""
    known = read(folder)
    for keyid in ids:
        if keyid in known:
            path, _ = known[keyid]
            (folder / RETIRED).mkdir(mode=0o700, exist_ok=True)
            path.rename(folder / RETIRED / f"{keyid[:8]}-{path.name}")
