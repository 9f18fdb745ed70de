"""Where a long compile stands, on disk beside the bundle, so that a killed one goes on instead of starting again."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import weightpager
from weightpager.bundle.writer import storage_errors
from weightpager.errors import CompileError
from weightpager.machine.paths import has_directory

SECONDS = 60.0
"""Between two entries of a running stage: an entry of a small model takes a second."""

SHARE = 0.03
"""Of the time that may go into entries: a large model's are rarer."""

Fits = Callable[[Mapping[str, Tensor]], bool]
"""Whether an entry's tensors are all that its stage needs."""


def anything(_tensors: Mapping[str, Tensor]) -> bool:
    """What fits a stage that says nothing else."""
    return True


def kept_beside(out: str | Path) -> Path:
    """Where the compile of a bundle keeps its journal: beside what ``out`` leads to, be it a link or ``.``."""
    path = Path(os.path.realpath(out))
    return path.with_name(f".{path.name}.resume")


class Journal:
    """Named stages of one compile: the steps that each has made, and the tensors that it needs to go on.

    An entry is written to a temporary file and renamed, so it is whole or absent. Entries of another compile, told by
    ``identity``, or of another version, which may train otherwise, are ignored and overwritten. An entry says how long
    its stage has taken, in all runs together: a stage starts when it is read, or when the journal is made.
    """

    def __init__(self, folder: Path | None, identity: str) -> None:
        """Keep entries in ``folder``, created when first needed; None keeps none."""
        self._folder = folder
        self._identity = identity
        self._made = self._last = time.monotonic()
        self._wait = SECONDS
        self._started: dict[str, float] = {}
        self._earlier = 0.0
        self._parts: list[Journal] = []

    @classmethod
    def none(cls) -> Journal:
        """A journal that keeps nothing."""
        return cls(None, "")

    def part(self, name: str) -> Journal:
        """A journal inside this one, whose stages may have the same names."""
        found = Journal(None if self._folder is None else self._folder / name, self._identity)
        self._parts.append(found)
        return found

    @contextmanager
    def held(self) -> Iterator[None]:
        """Until the end of this, no other compile may hold the same folder; if it ends well, nothing is left to resume.

        Raises:
            CompileError: another one does, or the storage refused it.
        """
        if self._folder is None or not has_directory(self._folder.parent):  # who writes the bundle will say so
            yield
            return
        with storage_errors():
            self._folder.mkdir(exist_ok=True)
            descriptor = os.open(self._folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _lock(descriptor, self._folder)
            try:
                yield
                self.remove()
            finally:
                with suppress(OSError):
                    self._folder.rmdir()  # it stays if there is anything to go on from
        finally:
            os.close(descriptor)

    @property
    def earlier(self) -> float:
        """Seconds that earlier runs took for what has been read, parts included."""
        return self._earlier + sum(part.earlier for part in self._parts)

    def due(self) -> bool:
        """Whether the last entry is old enough for another one."""
        return self._folder is not None and time.monotonic() - self._last >= self._wait

    def write(self, stage: str, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Replace a stage's entry.

        Raises:
            CompileError: the storage refused it.
        """
        if self._folder is None:
            return
        start = time.monotonic()
        seconds = start - self._started.get(stage, self._made)
        facts = self._owner() | {"step": str(step), "seconds": f"{seconds:.3f}"}
        temporary = self._path(stage).with_suffix(".tmp")
        try:
            with storage_errors():
                self._folder.mkdir(parents=True, exist_ok=True)
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata=facts)
                temporary.replace(self._path(stage))
        except SafetensorError as error:  # its way to say that the disk is full
            raise CompileError(f"cannot write {temporary.parent}: {error}") from error
        finally:
            temporary.unlink(missing_ok=True)
        self._last = time.monotonic()
        self._wait = max(SECONDS, (self._last - start) / SHARE)

    def read(self, stage: str, fits: Fits = anything) -> tuple[int, dict[str, Tensor]] | None:
        """A stage's entry: steps made and tensors; None if there is none of this compile that is whole and fits."""
        self._started[stage] = time.monotonic()
        entry = self._entry(stage, fits)
        if entry is None:
            return None
        step, seconds, tensors = entry
        self._started[stage] -= seconds
        self._earlier += seconds
        return step, tensors

    def has(self, stage: str, fits: Fits = anything) -> bool:
        """Whether `read` finds an entry."""
        return self._entry(stage, fits) is not None

    def remove(self) -> None:
        """The compile is finished: nothing is left to resume."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _owner(self) -> dict[str, str]:
        """Whose entries these are."""
        return {"identity": self._identity, "version": weightpager.__version__}

    def _entry(self, stage: str, fits: Fits) -> tuple[int, float, dict[str, Tensor]] | None:
        """Steps, seconds and tensors."""
        if self._folder is None or not self._path(stage).is_file():
            return None
        try:
            with safe_open(self._path(stage), framework="pt") as file:
                facts = file.metadata() or {}
                if not self._owner().items() <= facts.items():
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return (int(facts["step"]), float(facts["seconds"]), tensors) if fits(tensors) else None
        except (SafetensorError, OSError, ValueError, KeyError):
            return None

    def _path(self, stage: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{stage}.safetensors"


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CompileError(
            f"expected that nobody else compiles this bundle, found another compile that holds {folder}; "
            "wait until it has ended, or choose another name"
        ) from error
    except OSError:  # a file system without locks
        return
