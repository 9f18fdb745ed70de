"""Which servers of this user run: a file each, held locked for as long as its server lives."""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict, ValidationError

from weightpager.bundle.files.regular_file import open_regular
from weightpager.config import xdg_folder

_SUFFIX = ".server"
_MOST_BYTES = 2**16

_log = logging.getLogger(__name__)


class Presence(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    url: str
    pid: int
    bundle: str
    started: float


def usual_folder() -> Path:
    """Where servers of this user are announced: below ``XDG_RUNTIME_DIR``, else in the folder for temporary files."""
    base = xdg_folder("XDG_RUNTIME_DIR")
    if base is not None:
        return base / "weightpager"
    return Path(tempfile.gettempdir()) / f"weightpager-{os.getuid()}"


@contextmanager
def announced(presence: Presence, folder: Path | None = None) -> Iterator[None]:
    """Let others find this server for as long as the block runs. Where that can't be, a warning is logged.

    The system gives the lock back however the process ends, so that a file without one is a dead server's.
    """
    try:
        path, file = _write(presence, folder or usual_folder())
    except OSError as error:
        _log.warning("'weightpager ps' won't find this server: %s", error)
        yield
        return
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def running(folder: Path | None = None) -> list[Presence]:
    """The servers that run, the oldest first; files of dead ones are removed.

    Raises:
        OSError: the folder is there, but can't be read or belongs to somebody else.
    """
    folder = folder or usual_folder()
    if not os.path.lexists(folder):
        return []
    _check_own(folder)
    presences = [_read(path) for path in folder.glob(f"*{_SUFFIX}")]
    return sorted((presence for presence in presences if presence is not None), key=lambda presence: presence.started)


def _write(presence: Presence, folder: Path) -> tuple[Path, IO[str]]:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_own(folder)
    path = folder / f"{presence.pid}-{secrets.token_hex(4)}{_SUFFIX}"
    hidden = path.with_suffix(".new")
    file = hidden.open("x", encoding="utf-8")
    try:
        # Locked before it can be found: an unlocked file would be taken for a dead server's.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.write(presence.model_dump_json())
        file.flush()
        hidden.rename(path)
    except BaseException:
        file.close()
        hidden.unlink(missing_ok=True)
        raise
    return path, file


def _check_own(folder: Path) -> None:
    """Refuse a folder that others can write to: they could have us ask any address."""
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{folder}: expected a folder of this user that nobody else may write to; remove it")


def _read(path: Path) -> Presence | None:
    """The server that a file announces; None if it is gone, or the file is something else."""
    with suppress(OSError, ValidationError), open_regular(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return Presence.model_validate_json(file.read(_MOST_BYTES))
        path.unlink(missing_ok=True)
    return None
