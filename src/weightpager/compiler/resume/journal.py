"""Where a compile stands, on disk beside the bundle, so that a killed one resumes instead of starting again."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Generic, NamedTuple, Protocol, TypeVar

from torch import Tensor

import weightpager
from weightpager.bundle.files.new_directory import locked
from weightpager.bundle.writer import storage_errors
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.resume.cache import Cache, Entry, read_entry, step_of, unfinished, write_entry
from weightpager.errors import CompileError, ConfigError
from weightpager.machine.memory import forget_peak, give_back, peak_memory
from weightpager.machine.paths import has_directory
from weightpager.progress import Progress, StepProgress, silent

_WORDS = {
    "train": "the dense model's training",
    "refit": "the refit",
    "finetune": "fine-tuning",
    "dense": "the dense model's further training",
    "own-dense-": "the dense model's training for {}",
    "own-sparse-": "the training of {}'s own parameters",
    "private-": "{}'s own values",
    "keep": "the search for the sparsity",
    "keep-": "the search for what {} keeps",
}
"""A long stage's name in messages; for stages that each task has for itself, by how their names begin."""


def in_words(stage: str) -> str:
    """What messages call a stage; one that isn't long goes by its name."""
    beginning = next((name for name in _WORDS if name.endswith("-") and stage.startswith(name)), "")
    return _WORDS.get(beginning or stage, stage).format(stage.removeprefix(beginning))


_log = logging.getLogger(__name__)

SECONDS = 10.0
"""Least seconds between two entries of a running stage."""

SHARE = 0.03
"""Share of the time that may go into entries: one that takes a second is written twice a minute."""

Fits = Callable[[Mapping[str, Tensor]], bool]
"""Whether an entry's tensors are all that its stage needs."""


def journal_folder(out: str | Path) -> Path:
    """Where the compile of a bundle keeps its journal: beside what ``out`` leads to, be it a link or ``.``.

    Raises:
        ConfigError: it leads to the root, which has nothing beside it.
    """
    path = Path(os.path.realpath(out))
    if not path.name:
        raise ConfigError(f"out: expected a directory to create, found {path}")
    return path.with_name(f".{path.name}.resume")


class Reached(NamedTuple):
    """How many steps a stage has made, and what it needs to go on."""

    step: int
    tensors: dict[str, Tensor]


class Journal:
    """Named stages of one compile: the steps that each has made, and the tensors that it needs to go on.

    An entry is written elsewhere and renamed, so it is whole or absent. Entries of another compile, told by
    ``identity``, or of another version, which may train otherwise, are ignored and overwritten. An entry says how long
    its stage has taken, over all runs. The clock of a stage starts at its `read`, or with the journal if it is never
    read.

    A part may have an identity of its own, of those settings alone that its stages depend on. Such a part may use the
    cache. What it finds there isn't done again, and what it has finished goes there.
    """

    def __init__(self, folder: Path | None, identity: str, cache: Cache | None = None) -> None:
        """Keep entries in ``folder``, created when first needed; None keeps none."""
        self.folder = folder
        self._identity = identity
        self._cache = cache or Cache.none()
        self._made = self._last = monotonic()
        self._wait = SECONDS
        self._started: dict[str, float] = {}
        self._earlier = 0.0
        self._parts: dict[str, Journal] = {}
        self._cached: dict[str, float] = {}
        self._in_cache: set[str] = set()
        self._told: set[str] = set()
        self._of = ""

    @classmethod
    def none(cls) -> Journal:
        return cls(None, "")

    def part(self, name: str, identity: str | None = None, cache: Cache | None = None) -> Journal:
        """A journal in a folder of this one's; without an ``identity`` of its own it has this one's."""
        folder = None if self.folder is None else self.folder / name
        journal = Journal(folder, self._identity if identity is None else identity, cache)
        journal._of = f" of the {name.replace('-', ' ')}" if identity is None else ""
        self._parts[name] = journal
        return journal

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other compiles out of the folder. If what runs inside ends well, its entries are removed.

        Raises:
            CompileError: another one does, or the storage refused it.
        """
        if self.folder is None or not has_directory(self.folder.parent):  # who writes the bundle will say so
            yield
            return
        with _locked(self.folder):
            try:
                yield
            except BaseException:
                for folder in (part.folder for part in (*self._parts.values(), self) if part.folder is not None):
                    with suppress(OSError):  # entries are left
                        folder.rmdir()
                raise
            self.remove()  # what is there from now on is another compile's

    @property
    def earlier(self) -> float:
        """Seconds that earlier runs took for what was read here and in parts, the cache apart."""
        return self._earlier + sum(part.earlier for part in self._parts.values())

    def due(self) -> bool:
        """Whether the last entry is old enough for another one."""
        return self.folder is not None and monotonic() - self._last >= self._wait

    def write(self, stage: str, step: int, tensors: Mapping[str, Tensor], seconds: float | None = None) -> None:
        """Replace a stage's entry; it took ``seconds``, or as long as it has been since the stage started.

        Raises:
            CompileError: the storage refused it.
        """
        if self.folder is None:
            return
        start = monotonic()
        taken = start - self._started.get(stage, self._made) if seconds is None else seconds
        entry = Entry(step, taken, dict(tensors))
        with storage_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            with unfinished(self._path(stage)) as file:
                write_entry(file, self._owner, entry)
        self._last = monotonic()
        self._wait = max(SECONDS, (self._last - start) / SHARE)

    def read(self, stage: str, fits: Fits = lambda _: True) -> Reached | None:
        """How far a stage has come, by its entry; None if there is none of this compile that is whole and fits."""
        self._started[stage] = monotonic()
        cached = self._cache.read(stage, self._owner)
        if cached is not None and fits(cached.tensors):
            self._cached[stage] = cached.seconds
            return Reached(cached.step, cached.tensors)
        entry = self._entry(stage, fits)
        if entry is None:
            return None
        self._started[stage] -= entry.seconds
        self._earlier += entry.seconds
        if stage not in self._told and entry.step > 0:
            self._told.add(stage)
            _log.info("%s%s: goes on from step %d", in_words(stage), self._of, entry.step)
        return Reached(entry.step, entry.tensors)

    def has(self, stage: str, fits: Fits = lambda _: True) -> bool:
        """Whether this journal itself, the cache apart, has an entry that `read` finds."""
        return self._entry(stage, fits) is not None

    def knows(self, stage: str) -> bool:
        """Whether there is an entry that `read` finds, here or in the cache."""
        return self.has(stage) or self._cache.read(stage, self._owner) is not None

    def give_to_cache(self, stage: str) -> float | None:
        """Give a finished stage's entry to the cache, if there is one. It stays here too: caches forget.

        Returns:
            Seconds that the cache has saved; None where it had nothing.
        """
        cached = self._cached.get(stage)
        if cached is not None or (self.folder is not None and self._cache.adopt(stage, self._owner, self._path(stage))):
            self._in_cache.add(stage)
        return cached

    def is_in_cache(self, stage: str) -> bool:
        """Whether `give_to_cache` has found a stage in the cache, or put it there."""
        return stage in self._in_cache

    def resumable(self) -> list[str]:
        """The long stages, in words, that this compile would resume."""
        stages = [f"{in_words(stage)} (whole, in the cache)" for stage in self._in_cache]
        for path in [] if self.folder is None else sorted(self.folder.glob("*.safetensors")):
            at = None if path.stem in self._in_cache else step_of(path, self._owner)
            if at is not None and at[1] and at[0]:
                stages.append(f"{in_words(path.stem)} up to step {at[0]}")
        for part in self._parts.values():
            theirs = [f"{words}{part._of}" for words in part.resumable()]
            stages = stages + theirs if part._of else theirs + stages  # the dense model's training comes first
        return stages

    def remove(self) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _owner(self) -> dict[str, str]:
        return {"identity": self._identity, "version": weightpager.__version__}

    def _entry(self, stage: str, fits: Fits) -> Entry | None:
        if self.folder is None or not self._path(stage).is_file():
            return None
        entry = None
        with suppress(OSError):
            entry = read_entry(self._path(stage), self._owner)
        if entry is None:
            self._tell_of_loss(stage)
        return entry if entry is not None and fits(entry.tensors) else None

    def _tell_of_loss(self, stage: str) -> None:
        """Warn once that the entry of a long stage can't be used."""
        at = step_of(self._path(stage), self._owner)
        if stage not in self._told and (at is None or at[0] > 0):
            self._told.add(stage)
            why = "damaged" if at is None or at[1] else "of a compile with other settings, data, version or threads"
            _log.warning("%s: %s; begins again", self._path(stage), why)

    def _path(self, stage: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{stage}.safetensors"


def _locked(folder: Path) -> ExitStack:
    """Lock a folder, made where it is missing. Who held it before may remove it between any two steps."""
    taken = CompileError(
        f"expected that nobody else compiles this bundle, found another compile that holds {folder}; "
        "wait until it has ended, or choose another name"
    )
    while True:
        with storage_errors(), ExitStack() as stack:
            folder.mkdir(exist_ok=True)
            with suppress(FileNotFoundError):
                descriptor = stack.enter_context(locked(folder, os.O_RDONLY, taken, nullcontext, required=False))
                if os.path.samestat(os.fstat(descriptor), folder.stat()):
                    return stack.pop_all()


Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

Job = Callable[[StepProgress], Value]
"""Does one task's share of a stage, tells of its steps, and returns what was found.

It may run in another process, on another machine: it is a `functools.partial` of a function of a module, so that it can
be pickled, it opens no files of this machine, and it asks nothing of its process but what `Arithmetic` names.
"""


@dataclass(frozen=True)
class Done(Generic[Key, Value]):
    """What a job returned, and the time that it took."""

    key: Key
    value: Value
    seconds: float


class Workers(Protocol):
    """Does jobs that need nothing of each other. A cluster's are in ``weightpager.ray``."""

    @property
    def here(self) -> bool:
        """Whether jobs run in this process: they see its objects themselves, not copies, and may write its journal."""

    def each(
        self, jobs: Mapping[Key, Job[Value]], told: Callable[[Key], StepProgress], copies: int
    ) -> Iterator[Done[Key, Value]]:
        """Do all jobs; each is given as soon as it has ended, in any order.

        Args:
            jobs: by any key.
            told: gives, for a job's key, who is told of its steps, in this process.
            copies: how many times as much as a job is made of it holds at most, itself included.

        Raises:
            WeightpagerError: a job did; of several the first one's. All before it are given.
        """


class LocalWorkers:
    """Does jobs in this process, in their order; nothing is held of one that has ended."""

    here = True

    def each(
        self,
        jobs: Mapping[Key, Job[Value]],
        told: Callable[[Key], StepProgress],
        copies: int,  # noqa: ARG002
    ) -> Iterator[Done[Key, Value]]:
        for key, job in jobs.items():
            start = time.perf_counter()
            yield Done(key, job(told(key)), time.perf_counter() - start)


LOCAL = LocalWorkers()


@dataclass
class CompileRun:
    """What all stages of a running compile use; one stage at a time.

    Attributes:
        progress: told (stage, steps done, steps in all).
        expect: told the stages that will come, each with its work, as soon as it can be estimated.
        seconds: the time that each stage took, in all runs that the journal tells of.
        peak_memory: most bytes that the process held in a stage; a stage in which the system didn't count has none.
        memory_bound: bytes that each stage was said to take at most, before the first one; those apart that come and go
            as memory allows.
    """

    progress: Progress = silent
    journal: Journal = field(default_factory=Journal.none)
    expect: Callable[[Mapping[str, float]], None] = silent
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory: dict[str, int] = field(default_factory=dict)
    memory_bound: dict[str, int] = field(default_factory=dict)
    workers: Workers = LOCAL

    def workers_on(self, source: DenseModel) -> Workers:
        """Who works on a source's tasks. What lies in files of this machine, for want of memory, is worked on here."""
        return self.workers if source.scratch.folder is None else LOCAL

    @contextmanager
    def stage(self, name: str, *, one_step: bool = False) -> Iterator[None]:
        """Measure what runs inside, and add the time of what it needn't do again since the journal has it.

        Args:
            name: of the stage.
            one_step: tell of its begin and its end, as nothing inside tells of steps.
        """
        told: StepProgress = partial(self.progress, name) if one_step else silent
        told(0, 1)
        start, earlier = time.perf_counter(), self.journal.earlier
        give_back()
        counted = forget_peak()
        yield
        told(1, 1)
        spent = time.perf_counter() - start + self.journal.earlier - earlier
        self.seconds[name] = self.seconds.get(name, 0.0) + spent
        if counted and (peak := peak_memory()) is not None:
            self.peak_memory[name] = max(peak, self.peak_memory.get(name, 0))
