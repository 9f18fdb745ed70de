"""The signed metadata of a repository, in the roles of The Update Framework.

Root says which keys each role has. Targets lists versions and channels. Snapshot says which targets file is current,
and timestamp which snapshot is. A new state counts when the timestamp has been replaced, which is one rename.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization.json import JSONSerializer

from weightpager.bundle.files.new_file import UNFINISHED, new_file
from weightpager.bundle.files.regular_file import storage_errors_as
from weightpager.delivery.version_file import METADATA, TARGETS
from weightpager.errors import ConfigError, DeliveryError
from weightpager.machine.paths import has_directory

RETIRED = "retired"
"""Folder for keys that no role knows any more."""


def create_keys(folder: Path, role: str, numbers: Iterable[object]) -> list[CryptoSigner]:
    """Make key files ``ROLE-N.pem``. One that is there, which a killed command has left, is taken."""
    paths = [folder / f"{role}-{number}.pem" for number in numbers]
    return [_read(path) if path.exists() else _create_key(path) for path in paths]


def _create_key(path: Path) -> CryptoSigner:
    signer = CryptoSigner.generate_ed25519()
    with storage_errors_as(DeliveryError, f"the key {path}"), new_file(path, 0o600) as file:
        file.write(signer.private_bytes)
    return signer


def read(folder: Path) -> dict[str, tuple[Path, CryptoSigner]]:
    """The keys of a folder, by their ids in metadata. Raises `ConfigError` if there is none, or a file is no key."""
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


storage_errors = partial(storage_errors_as, DeliveryError, "the repository")
"""A context that turns an `OSError` of the storage into a `DeliveryError`."""


def write_file(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file, which may replace another one, and the folders that it needs."""
    with storage_errors():
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path, 0o644) as file:
            os.fchmod(file.fileno(), 0o644)  # a web server reads it, whatever the umask
            for piece in pieces:
                file.write(piece)


def remove_leftovers(root: Path) -> None:
    """Remove what killed writers have left. Only whoever holds the repository's lock may do so."""
    for path in root.rglob(f".*{UNFINISHED}"):
        with suppress(OSError):
            path.unlink()


ROLES = ("root", "targets", "snapshot", "timestamp")

DAYS = {"root": 730, "targets": 365, "snapshot": 30, "timestamp": 30}
"""Until a role's metadata expires."""


class Roles:
    """The metadata of a repository, as it is now, and the keys that are at hand to change it."""

    def __init__(self, repository: Path, key_folder: Path, days: int | None = None) -> None:
        """Read a repository's metadata; keys of roles that aren't asked to sign need not be there.

        Timestamp and snapshot expire after ``days``; None for `DAYS`.

        Raises:
            DeliveryError: there is no repository, or its metadata can't be read.
        """
        self._repository = repository
        self._folder = repository / METADATA
        self._keys = key_folder
        self._days = DAYS if days is None else DAYS | {"snapshot": days, "timestamp": days}
        if not (self._folder / "1.root.json").exists():
            raise no_repository(repository)
        version = 1
        while (self._folder / f"{version + 1}.root.json").exists():
            version += 1
        self.root: Root = self._read(f"{version}.root.json")
        self.timestamp: Timestamp = self._read("timestamp.json")
        self.snapshot: Snapshot = self._read(f"{self.timestamp.snapshot_meta.version}.snapshot.json")
        self.targets: Targets = self._read(f"{self.snapshot.meta['targets.json'].version}.targets.json")

    def check_keys(self, *roles: str) -> None:
        """See that these roles can sign."""
        for role in roles:
            self._signers(role)

    def target(self, path: str) -> bytes | None:
        """What a target holds; None if there is none."""
        return self.content(path) if path in self.targets.targets else None

    def content(self, path: str) -> bytes:
        """What a target holds that the repository has."""
        try:
            return self.target_file(path).read_bytes()
        except OSError as error:
            raise DeliveryError(f"{path}: expected a file, found none that can be read: {error}") from error

    def set_targets(self, contents: Mapping[str, bytes]) -> None:
        """Write targets, and sign a state that has them."""
        for path, content in contents.items():
            target = TargetFile.from_data(path, content, ["sha256"])
            write_file(self._target_path(target), [content])
            self.targets.targets[path] = target
        self.publish(targets=True)

    def remove_targets(self, paths: Iterable[str]) -> None:
        """Sign a state without these targets. Their files stay."""
        for path in paths:
            del self.targets.targets[path]
        self.publish(targets=True)

    def target_file(self, path: str) -> Path:
        """Where a target lies that the repository has."""
        return self._target_path(self.targets.targets[path])

    def written_at(self, path: str) -> int:
        """When a target's file was written, in nanoseconds since 1970, by which versions are told old from new."""
        with storage_errors():
            return self.target_file(path).stat().st_mtime_ns

    def superseded(self) -> Iterator[Path]:
        """Files of states before the last two. A device that is looking may have seen the last but one."""
        for role, now in (("targets", self.targets.version), ("snapshot", self.snapshot.version)):
            for path in sorted(self._folder.glob(f"*.{role}.json")):
                number = path.name.partition(".")[0]
                if number.isdecimal() and int(number) < now - 1:
                    yield path

    def publish(self, *, targets: bool = False, beside: Iterable[CryptoSigner] = ()) -> None:
        """Sign a new state, whose last step replaces the timestamp; ``targets`` too.

        Keys ``beside`` sign as well, which the next root will ask for.
        """
        # All signatures are made before a file is written: a missing key must leave the repository as it was.
        more = list(beside)
        writes = []
        if targets:
            self.targets.version = self._free("targets", self.targets.version)
            signed = self._signed("targets", self.targets, more)
            writes.append((f"{self.targets.version}.targets.json", signed))
            self.snapshot.meta["targets.json"] = MetaFile(self.targets.version, len(signed))
        self.snapshot.version = self._free("snapshot", self.snapshot.version)
        signed = self._signed("snapshot", self.snapshot, more)
        writes.append((f"{self.snapshot.version}.snapshot.json", signed))
        self.timestamp.version += 1
        self.timestamp.snapshot_meta = MetaFile(self.snapshot.version, len(signed))
        writes.append(("timestamp.json", self._signed("timestamp", self.timestamp, more)))
        for name, content in writes:
            write_file(self._folder / name, [content])

    def _free(self, role: str, version: int) -> int:
        """The next version that has no file: files keep their content for ever, also those of a killed publisher."""
        return next(number for number in count(version + 1) if not (self._folder / f"{number}.{role}.json").exists())

    def renew_root(self) -> None:
        """Sign a root that expires later."""
        self._put_root(self._signers("root"))

    def rotate(self, role: str) -> list[Path]:
        """Give a role new keys in place of all that it has, and return their files.

        Devices accept the repository at every moment: what the role signs is signed with both before the root changes.
        """
        old = list(self.root.roles[role].keyids)
        present = self._signers("root")
        first = self.root.version + 1
        new = create_keys(self._keys, role, [f"{first}-{number}" for number in range(1, len(old) + 1)])
        self._at_hand.update((signer.public_key.keyid, signer) for signer in new)
        if role != "root":
            self.publish(targets=role == "targets", beside=new)
        for keyid in old:
            self.root.revoke_key(keyid, role)
        for signer in new:
            self.root.add_key(signer.public_key, role)
        self._put_root([*present, *new] if role == "root" else present)
        retire(self._keys, old)
        now = self.root.roles[role].keyids
        return [path for keyid, (path, _) in read(self._keys).items() if keyid in now]

    def _put_root(self, signers: Iterable[CryptoSigner]) -> None:
        self.root.version += 1
        write_file(self._folder / f"{self.root.version}.root.json", [sign("root", self.root, signers, self._days)])

    def _signed(self, role: str, signed: Any, more: Iterable[CryptoSigner]) -> bytes:
        return sign(role, signed, [*self._signers(role), *more], self._days)

    def _signers(self, role: str) -> list[CryptoSigner]:
        wanted = self.root.roles[role]
        present = [self._at_hand[keyid] for keyid in wanted.keyids if keyid in self._at_hand]
        if len(present) < wanted.threshold:
            raise ConfigError(
                f"keys: expected {wanted.threshold} of the {len(wanted.keyids)} keys of the role {role} in "
                f"{self._keys}, found {len(present)}; copy them there for this command"
            )
        return present

    @cached_property
    def _at_hand(self) -> dict[str, CryptoSigner]:
        """All keys of the folder, by their ids."""
        return {keyid: signer for keyid, (_, signer) in read(self._keys).items()}

    def _target_path(self, target: TargetFile) -> Path:
        folder, _, name = target.path.rpartition("/")
        return self._repository / TARGETS / folder / f"{target.hashes['sha256']}.{name}"

    def _read(self, name: str) -> Any:
        try:
            return Metadata.from_file(str(self._folder / name)).signed
        except (RepositoryError, OSError) as error:
            found = f"{self._folder / name}: expected signed metadata, found none that can be read"
            raise DeliveryError(f"{found}; bring it back from a copy of the repository") from error


def sign(role: str, signed: Any, signers: Iterable[CryptoSigner], days: Mapping[str, int]) -> bytes:
    """Sign metadata, which expires so many days from now; the bytes of its file."""
    signed.expires = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(days=days[role])
    metadata = Metadata(signed)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes(JSONSerializer(compact=True))


def begin(folder: Path, signers: Mapping[str, list[CryptoSigner]], thresholds: Mapping[str, int]) -> None:
    """Write the metadata of an empty repository into a folder."""
    root = Root(consistent_snapshot=True)
    for role, of_role in signers.items():
        for signer in of_role:
            root.add_key(signer.public_key, role)
        root.roles[role].threshold = thresholds.get(role, 1)
    first = {
        "1.root.json": ("root", root),
        "1.targets.json": ("targets", Targets()),
        "1.snapshot.json": ("snapshot", Snapshot()),
        "timestamp.json": ("timestamp", Timestamp()),
    }
    for name, (role, signed) in first.items():
        write_file(folder / name, [sign(role, signed, signers[role], DAYS)])


def no_repository(place: Path) -> DeliveryError:
    """The error where a repository should be."""
    return DeliveryError(f"{place}: expected a repository, found none; 'weightpager publish init' makes one")
