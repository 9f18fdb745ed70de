"""What compiles share, in the user's cache directory: trained dense models, their scores, and calibrations.

An entry is named after a hash of all that it depends on. It appears whole, so that any number of compiles may use the
same folder; which of two equal ones stays doesn't matter. The entries that nobody has used for longest go first.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3
from safetensors import SafetensorError, safe_open

from weightpager.bundle.files.new_directory import remove_leftovers, scratch, sync
from weightpager.config import cache_dir, cache_limit, format_size
from weightpager.errors import CompileError

if TYPE_CHECKING:  # what is kept can be listed and removed without torch
    from torch import Tensor

_log = logging.getLogger(__name__)

_SUFFIX = ".safetensors"

_DAMAGE = (SafetensorError, ValueError, KeyError)

Owner = Mapping[str, str]
"""What an entry's maker states of itself; who asks for it has to state the same."""


@dataclass(frozen=True)
class Entry:
    """A file of the journal or the cache: the step that a stage had reached in so many seconds, and what it keeps."""

    step: int
    seconds: float
    tensors: dict[str, Tensor]


UNFINISHED = ".unfinished-"
"""How the names of directories begin that hold a file which isn't whole yet."""


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Where to write what takes its place at ``path`` if the body ends well. What killed processes have left goes.

    In a directory of its own: the library that writes it puts a file beside it, which a kill leaves.
    """
    with scratch(path.parent, UNFINISHED) as folder:
        yield folder / path.name
        (folder / path.name).replace(path)


def write_entry(path: Path, owner: Owner, entry: Entry) -> None:
    """Write an entry with a hash of its tensors, to the disk. The caller has to make the file appear in one step.

    Raises:
        OSError, CompileError: the storage refused it.
    """
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in entry.tensors.items()}
    facts = {"step": str(entry.step), "seconds": f"{entry.seconds:.3f}", "blake3": _digest(tensors)}
    try:
        save_file(tensors, path, metadata=dict(owner) | facts)
    except SafetensorError as error:  # its way to say that the disk is full
        raise CompileError(f"cannot write {path.parent}: {error}") from error
    sync(path)


def read_entry(path: Path, owner: Owner) -> Entry | None:
    """The entry in a file; None if it is damaged, or another owner's. Raises `OSError` if it can't be read now."""
    with suppress(*_DAMAGE), _opened(path) as (file, facts):
        if owner.items() <= facts.items():
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if _digest(tensors) == facts["blake3"]:
                return Entry(int(facts["step"]), float(facts["seconds"]), tensors)
    return None


def step_of(path: Path, owner: Owner) -> tuple[int, bool] | None:
    """The step that an entry has reached, and whether it is this owner's, by its header; None if it is damaged."""
    with suppress(OSError, *_DAMAGE), _opened(path) as (_, facts):
        return int(facts["step"]), owner.items() <= facts.items()
    return None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file, file.metadata() or {}
    except RuntimeError as error:  # torch opens it a second time, and says so of a file that it can't open
        raise OSError(str(error)) from error


def _digest(tensors: Mapping[str, Tensor]) -> str:
    from torch import uint8

    digest = blake3()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Kept:
    """A file of the cache, and the time of its last read or write in seconds since the epoch."""

    path: Path
    bytes: int
    used: float


class Cache:
    """Entries by stage and owner, at most ``limit`` bytes in all. A storage that refuses one ends no compile.

    What this object has read or written makes no room for what it writes: a compile that is resumed needs all of it.
    """

    def __init__(self, folder: Path | None, limit: int) -> None:
        """Keep entries in ``folder``, created when first needed; None keeps and finds none."""
        self.folder, self.limit = folder, limit
        self.keeps = folder is not None
        self._used: set[Path] = set()

    @classmethod
    def none(cls) -> Cache:
        return cls(None, 0)

    @classmethod
    def of_user(cls) -> Cache:
        """The user's: see `config.cache_dir` and `config.cache_limit`."""
        limit = cache_limit()
        return cls(cache_dir() / "compile" if limit else None, limit)

    def read(self, stage: str, owner: Owner) -> Entry | None:
        """A finished stage's entry; None if there is none. A damaged one is removed, with a warning."""
        if self.folder is None:
            return None
        path = self._path(self.folder, stage, owner)
        if not os.path.lexists(path):
            return None
        try:
            facts = path.stat()
            entry = read_entry(path, owner)
        except OSError as error:  # another compile may have made room meanwhile
            _log.info("%s: cannot be read: %s", path, error)
            return None
        with suppress(OSError):
            if entry is not None:
                self._used.add(path)
                os.utime(path)
            else:
                _log.warning("%s: damaged; removed, and what it held is done again", path)
                if os.path.samestat(facts, path.stat()):  # another compile may have put a whole one there
                    path.unlink()
        return entry

    def write(self, stage: str, owner: Owner, seconds: float, tensors: Mapping[str, Tensor]) -> bool:
        """Keep what a stage has found out in ``seconds``; False if it isn't kept."""
        size = sum(tensor.nbytes for tensor in tensors.values())
        return self._put(stage, owner, size, partial(write_entry, owner=owner, entry=Entry(0, seconds, dict(tensors))))

    def adopt(self, stage: str, owner: Owner, path: Path) -> bool:
        """Keep a finished stage's file, an entry of the same owner, here too; False if it isn't kept."""
        try:
            return self._put(stage, owner, path.stat().st_size, partial(_link_or_copy, path))
        except OSError:
            return False

    def stop(self, reason: object) -> None:
        """Keep nothing more, and say why; what is there is still found."""
        if self.keeps:
            _log.warning("%s: nothing is kept for other compiles: %s", self.folder, reason)
        self.keeps = False

    def entries(self) -> list[Kept]:
        """All entries, the most recently used first."""
        paths: list[Path] = []
        entries = []
        with suppress(OSError):  # it isn't there, or in a folder of another user's
            paths = list(self.folder.glob(f"*{_SUFFIX}")) if self.folder else []
        for path in paths:
            with suppress(OSError):
                facts = path.stat()
                entries.append(Kept(path, facts.st_size, facts.st_mtime))
        return sorted(entries, key=lambda kept: kept.used, reverse=True)

    def clear(self) -> int:
        """Remove all entries; the bytes that they took."""
        entries = self.entries()
        try:
            if self.folder is not None:
                remove_leftovers(self.folder, UNFINISHED)
            for kept in entries:
                kept.path.unlink(missing_ok=True)
        except OSError as error:
            raise CompileError(f"cannot remove {error.filename}: {error.strerror}") from error
        return sum(kept.bytes for kept in entries)

    def _put(self, stage: str, owner: Owner, size: int, fill: Callable[[Path], None]) -> bool:
        if self.folder is None or not self.keeps or not self._make_room(size):
            return False
        path = self._path(self.folder, stage, owner)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # they may tell of private data
            with unfinished(path) as file:
                fill(file)
                os.utime(file)  # a link is as old as what it leads to
        except (OSError, CompileError) as error:
            self.stop((isinstance(error, OSError) and error.strerror) or error)
            return False
        self._used.add(path)
        return True

    def _make_room(self, size: int) -> bool:
        """Remove what others used longest ago until ``size`` more bytes keep to the limit; False if they can't."""
        entries = self.entries()
        room = self.limit - size - sum(kept.bytes for kept in entries if kept.path in self._used)
        if room < 0:
            return False
        for kept in entries:
            if kept.path in self._used:
                continue
            room -= kept.bytes
            if room < 0:
                _log.info("%s: removed %s, used longest ago", kept.path, format_size(kept.bytes))
                with suppress(OSError):
                    kept.path.unlink()
        return True

    @staticmethod
    def _path(folder: Path, stage: str, owner: Owner) -> Path:
        return folder / f"{stage}-{blake3(repr(sorted(owner.items())).encode()).hexdigest()[:32]}{_SUFFIX}"


def _link_or_copy(path: Path, to: Path) -> None:
    try:
        os.link(path, to)
    except OSError:  # another file system
        shutil.copyfile(path, to)
        sync(to)
