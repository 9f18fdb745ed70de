"""Every error that weightpager raises on purpose.

    WeightpagerError
    ├── ConfigError             an option, size, task file or environment variable is wrong
    ├── CompileError            a model or a data set cannot be compiled
    │   └── NotExportableError  a kind of tasks has no graph: its module can't be said in a graph's operators
    │       └── ExportFailedError  another library failed on the way to a graph
    ├── BundleError             a bundle cannot be used
    │   ├── BundleFormatError   a file, field, index or bound is not what the format says
    │   ├── PageCorruptError    a page's bytes do not match its id
    │   └── UnknownTaskError    the bundle has no task of that name
    ├── ImageError              an image is missing, damaged, too large, or none
    ├── StoreError              pages cannot be read from storage
    │   └── StoreTimeoutError   storage hangs
    ├── DeliveryError           a repository of bundles, or a pull from it, can't go on
    │   └── UntrustedError      what a repository gives isn't what its keys signed, or is out of date
    ├── SampleUnavailable       a sample model or data set cannot be fetched (weightpager_lab.samples)
    ├── BudgetError             the memory budget cannot hold what was asked for
    │   └── TaskTooLargeError   it never holds the task, whatever else leaves
    ├── BusyError               a switch took longer than the caller would wait, or a task is in use or has just left
    ├── SwitchFailedError       a switch failed after the old task was given up: no task is active
    ├── TaskNotActiveError      a task's module was called while its pages may be evicted
    ├── InferenceOnlyError      a gradient was asked of paged weights
    ├── RequestError            a request to the server asks for something that it can't give
    │   └── ConflictError       what is on the disk, or in use, forbids what the admin asked for
    ├── QueueFullError          the server has more requests waiting than it takes
    ├── RequestTimeoutError     a request took longer than the server gives it
    ├── ServerClosedError       the server is shutting down
    └── EngineClosedError       the engine has been closed

Anything else that escapes is a bug of ours.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path


class WeightpagerError(Exception):
    """Root of the hierarchy; its text says what was expected, what was found and what to do."""


class ConfigError(WeightpagerError):
    """An option, size, task file or environment variable is wrong."""


class CompileError(WeightpagerError):
    """A model or a data set cannot be compiled."""


class NotExportableError(CompileError):
    """A kind of tasks has no graph; the text says what of its module no operator of graphs can say."""


class ExportFailedError(NotExportableError):
    """Another library failed on the way to a graph; with another version of it there may be one."""


class BundleError(WeightpagerError):
    """A bundle cannot be used; ``bundle`` is its path, if that is known by now."""

    bundle: Path | None = None

    @property
    def plain(self) -> str:
        """The text without the bundle's path and what to do about it."""
        return super().__str__()


class BundleFormatError(BundleError):
    """Something is not what the bundle format says; ``file``, ``field``, ``expected`` and ``found`` say what."""

    def __init__(self, file: str, field: str, expected: object, found: object) -> None:
        super().__init__(f"{file}: {field}: expected {expected}, found {found}")
        self.file, self.field, self.expected, self.found = file, field, expected, found

    @property
    def is_damage(self) -> bool:
        """Whether the file isn't the one that was written, so that another copy helps."""
        return self.field in ("file", "size", "BLAKE3")

    def __str__(self) -> str:
        return self.plain if self.bundle is None else f"{self.bundle}: {self.plain}{self._advice(self.bundle)}"

    def _advice(self, bundle: Path) -> str:
        if not self.is_damage:
            return ""
        if self.file.startswith("manifest."):  # without which nobody knows what belongs into the bundle
            return "; copy the whole bundle again"
        again = "" if "copy it again" in self.plain else "copy it again, or "
        return f"; {again}{mending(bundle)}"


class PageCorruptError(BundleError):
    """A page's bytes do not match its id; ``page`` is its number, ``where`` says where it was found."""

    def __init__(self, page: int, where: str) -> None:
        super().__init__(
            f"{where}: page {page} does not match its BLAKE3 hash; the file or the storage is damaged. "
            "Run 'weightpager verify', and mend it from another copy with --repair --from."
        )
        self.page, self.where = page, where

    def __str__(self) -> str:
        if self.bundle is None:
            return self.plain
        damaged = f"page {self.page} does not match its BLAKE3 hash"
        return (
            f"{self.bundle}: {self.where}: {damaged}; the file or the storage is damaged. "
            f"Mend it from another copy: {mending(self.bundle)}"
        )


class UnknownTaskError(BundleError):
    """The bundle has no task of that name; ``task`` is the name."""

    def __init__(self, task: str, known: Iterable[str], who: str = "the bundle has") -> None:
        names = sorted(known)
        close = get_close_matches(task, names, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        super().__init__(f"unknown task {task!r}; {who}: {', '.join(names)}.{hint}")
        self.task = task


class ImageError(WeightpagerError):
    """An image is missing, damaged, too large, or no image."""


class StoreError(WeightpagerError):
    """Pages cannot be read from storage."""


class StoreTimeoutError(StoreError):
    """Storage has delivered nothing for too long."""


class BusyError(WeightpagerError):
    """A switch took longer than the caller was ready to wait, or a task is in use, or has just left the bundle."""


class DeliveryError(WeightpagerError):
    """A repository of bundles, or a pull from it, can't go on; the bundle that is installed stays."""


class UntrustedError(DeliveryError):
    """What a repository gives isn't what its keys signed, is older than what was seen before, or has expired."""


class BudgetError(WeightpagerError):
    """The memory budget cannot hold what was asked for; ``smallest`` bytes would."""

    def __init__(self, message: str, smallest: int) -> None:
        super().__init__(message)
        self.smallest = smallest


class TaskTooLargeError(BudgetError):
    """The memory budget never holds the task, whatever else leaves; ``smallest`` bytes would."""


class SwitchFailedError(WeightpagerError):
    """A switch failed after the old task was given up: no task is active, nothing resident is wrong."""


class TaskNotActiveError(WeightpagerError):
    """A task's module was called while its pages may be evicted."""


class InferenceOnlyError(WeightpagerError):
    """A gradient was asked of paged weights."""


class EngineClosedError(WeightpagerError):
    """The engine has been closed."""


class RequestError(WeightpagerError):
    """A request to the server asks for something that it can't give; ``param`` is the field, ``code`` says why."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.code = param, code


class ConflictError(RequestError):
    """What is on the disk, or in use, forbids what a server's admin asked for; the request as such is right."""


class QueueFullError(WeightpagerError):
    """The server has more requests waiting than it takes."""


class RequestTimeoutError(WeightpagerError):
    """A request took longer than the server gives it."""


class ServerClosedError(WeightpagerError):
    """The server is shutting down."""


def mending(bundle: Path) -> str:
    """The command that mends a bundle from another copy."""
    return f"'weightpager verify {bundle} --repair --from COPY'"


@contextmanager
def of_bundle(path: Path) -> Iterator[None]:
    """Name a bundle in errors of its files and pages."""
    try:
        yield
    except BundleError as error:
        if error.bundle is None:
            error.bundle = path
        raise


def shortened(text: str, most: int = 80) -> str:
    """A text of any length as a message shows it."""
    return text if len(text) <= most else text[: most - 3] + "..."


class _Repr(reprlib.Repr):
    """A ``repr`` that looks at little more than a message shows: aliases make a few lines of YAML very large."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = 20
        self.maxstring = self.maxlong = self.maxother = 200

    def repr_int(self, x: int, level: int) -> str:
        try:
            return super().repr_int(x, level)
        except ValueError:  # Python writes no number that is longer
            return "a number of thousands of digits"


_REPR = _Repr()


def shown(found: object) -> str:
    """What was found, in at most 80 characters."""
    return "nothing" if found is None else shortened(_REPR.repr(found))


def first_line(error: BaseException) -> str:
    """What another library's error says, in a line of ours: its first line, or its class where it says nothing."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
