"""What the repository's keys have signed: the version file that a device may install."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

from tuf.api import exceptions as tuf
from tuf.api.exceptions import DownloadError, DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater

from weightpager.bundle.files.new_file import new_file
from weightpager.delivery.pulling.installed import write_errors
from weightpager.delivery.sources import MissingError, Source, TransferError
from weightpager.delivery.version_file import METADATA, TARGETS, VersionFile
from weightpager.errors import ConfigError, DeliveryError, UntrustedError


class TufFetcher(FetcherInterface):
    """Fetches from a `Source`; URLs are paths in the repository."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def _fetch(self, url: str) -> Iterator[bytes]:
        pieces = self._pieces(url)
        next(pieces)  # a file that is missing must raise now, where the library expects it
        return pieces

    def _pieces(self, url: str) -> Iterator[bytes]:
        try:
            with self._source.open(url) as stream:
                yield b""  # once the file is open
                yield from stream.pieces
        except MissingError as error:
            raise DownloadHTTPError(str(error), 404) from error
        except TransferError as error:
            raise DownloadError(str(error)) from error


_TARGET_BYTES = 256 << 20

_KEPT_ROOT = "trusted.json"
"""The root metadata that a device trusts, in its folder of metadata."""

_GIVE = "give the file 1.root.json that 'weightpager publish init' named, with --trust"


def signed_version(source: Source, folder: Path, target: str, root: bytes | None) -> VersionFile:
    """The version file that a target holds, once all signatures, versions and dates have been verified.

    ``folder`` has the metadata that this device has seen, behind which it never goes back. ``root`` is the root
    metadata that the device's owner trusts; None for the one that it has seen last.

    Raises:
        ConfigError: there is no such root metadata.
        UntrustedError: what the repository gives isn't signed, is older than what was seen, or has expired.
        DeliveryError: a file is missing or can't be read or written; there is no such target.
    """
    try:
        with write_errors():
            return _signed_version(source, folder, target, root)
    except tuf.ExpiredMetadataError as error:
        raise UntrustedError(
            f"{source.place}: {error}, and this device's clock says {_now()}. Set the clock if it is wrong; else the "
            "repository is an old copy, or its owner has to run 'weightpager publish refresh'"
        ) from error
    except tuf.BadVersionNumberError as error:
        raise UntrustedError(
            f"{source.place}: expected metadata no older than what this device has seen, found older: {error}; "
            "the repository is an old copy, or somebody puts one in its place"
        ) from error
    except tuf.UnsignedMetadataError as error:
        raise UntrustedError(
            f"{source.place}: expected signatures by the keys that this device trusts, found others: {error}; ask the "
            "repository's owner. Nothing was installed"
        ) from error
    except tuf.RepositoryError as error:
        raise UntrustedError(f"{source.place}: expected what was signed, found something else: {error}") from error
    except tuf.DownloadError as error:
        cause = error.__cause__ if isinstance(error.__cause__, DeliveryError) else None
        raise DeliveryError(str(cause or f"{source.place}: expected signed metadata, found other: {error}")) from error


def _signed_version(source: Source, folder: Path, target: str, root: bytes | None) -> VersionFile:
    folder.mkdir(parents=True, exist_ok=True)
    updater = _updater(source, folder, _kept_root(folder) if root is None else root)
    try:
        updater.refresh()
    finally:
        _keep_root(folder)
    info = updater.get_targetinfo(target)
    if info is None:
        raise DeliveryError(
            f"{source.place}: expected the target {target}, found none; check name, channel and version"
        )
    if info.length > _TARGET_BYTES:
        raise UntrustedError(f"{target}: expected at most {_TARGET_BYTES} bytes, found {info.length}")
    path = folder / "target.json"
    updater.download_target(info, str(path))
    return VersionFile.parse(path.read_bytes())


def _updater(source: Source, folder: Path, root: bytes | None) -> Updater:
    """TUF's client, which begins with a root that is trusted and writes to a folder."""
    if root is None:
        raise ConfigError(
            f"trust: expected the root metadata of {source.place}, from which this bundle hasn't come yet; {_GIVE}"
        )
    try:
        return _Updater(
            metadata_dir=str(folder),
            metadata_base_url=METADATA,
            target_base_url=TARGETS,
            fetcher=TufFetcher(source),
            bootstrap=root,
        )
    except tuf.RepositoryError as error:
        raise ConfigError(f"trust: expected root metadata that signs itself, found none: {error}; {_GIVE}") from error


class _Updater(Updater):
    """TUF's client, without its way to write: unsynced files may be empty after a power cut, and versions forgotten."""

    def _persist_file(self, filename: str, data: bytes) -> None:
        with new_file(Path(filename)) as file:
            file.write(data)


def _kept_root(folder: Path) -> bytes | None:
    """The root that was trusted last; None if there was none."""
    try:
        return (folder / _KEPT_ROOT).read_bytes()
    except FileNotFoundError:
        return None


def _keep_root(folder: Path) -> None:
    """Keep the root that is trusted now. TUF deletes and writes its own at every look: a kill may leave none."""
    with suppress(FileNotFoundError):  # it hadn't room for its own
        root = (folder / "root.json").read_bytes()
        if root != _kept_root(folder):
            with new_file(folder / _KEPT_ROOT) as file:
                file.write(root)


def _now() -> str:
    return f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"
