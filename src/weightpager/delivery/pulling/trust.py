"""What the repository's keys have signed: the version file that a device may install."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

from tuf.api import exceptions as tuf
from tuf.ngclient import Updater

from weightpager.delivery.names import METADATA, TARGETS
from weightpager.delivery.sources.source import Source
from weightpager.delivery.sources.tuf_fetcher import TufFetcher
from weightpager.delivery.version_file import VersionFile
from weightpager.errors import ConfigError, DeliveryError, UntrustedError

_TARGET_BYTES = 256 << 20


def signed_version(source: Source, folder: Path, target: str, root: bytes | None) -> VersionFile:
    """The version file that a target holds, once all signatures, versions and dates have been verified.

    Args:
        source: of the repository.
        folder: where this device keeps the metadata that it has seen; never goes back behind it.
        target: path of the target.
        root: the root metadata that the device's owner trusts; None for the one that it has seen last.

    Raises:
        UntrustedError: what the repository gives isn't signed, is older than what was seen, or has expired.
        DeliveryError: a file is missing or can't be read; there is no such target.
    """
    try:
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
    if root is None and not (folder / "root.json").exists():
        raise ConfigError(
            f"trust: expected the root metadata of {source.place}, from which this bundle hasn't come yet; give "
            "the file 1.root.json that 'weightpager publish init' named, with --trust"
        )
    updater = Updater(
        metadata_dir=str(folder),
        metadata_base_url=METADATA,
        target_base_url=TARGETS,
        fetcher=TufFetcher(source),
        bootstrap=root,
    )
    updater.refresh()
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


def _now() -> str:
    return f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"
