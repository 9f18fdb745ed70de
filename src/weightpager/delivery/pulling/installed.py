"""`Installed`: the versions of one bundle on a device, and which of them is in use.

``NAME.bundle`` is a symbolic link to a version's bundle. Renaming another link over it is the one step in which a
device changes over; all that comes before happens elsewhere, and all that comes after only tidies up.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from msgspec import field, json, structs

from weightpager.bundle.files.new_directory import locked, sync
from weightpager.bundle.files.new_file import new_file
from weightpager.bundle.files.regular_file import storage_errors_as
from weightpager.bundle.files.strict import Strict
from weightpager.errors import BundleFormatError, ConfigError, DeliveryError
from weightpager.machine.paths import has_directory

BUNDLE, VERSION = "bundle", "version.json"
"""In a version's folder: the bundle, and what it was made from."""

STATE = ".weightpager"
"""Folder beside the bundles, for all that pulls keep."""

_GONE = ".gone"
"""At the end of a folder's name: of a version that is being deleted. No key ends so."""

write_errors = partial(
    storage_errors_as,
    DeliveryError,
    "the bundle",
    "; the bundle in use stays, and what has come is kept for the next pull",
)
"""A context that turns an `OSError` of the storage into a `DeliveryError`."""


class _Remembered(Strict, frozen=True, kw_only=True):
    """What a device remembers.

    If it is lost, the versions that are here are found again, and their order is that of their age. Which of them were
    rolled back, and whether a check is due, isn't known any more.

    Attributes:
        history: versions by their keys, in the order in which pulls brought them into use. A version that a pull
            replaced comes right before the one that replaced it. Rollbacks keep the order.
        refused: versions that were rolled back, and aren't installed again by themselves.
        unchecked: the version whose check hasn't ended yet.
    """

    history: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    unchecked: str | None = None


@dataclass(frozen=True)
class Places:
    """Where a device keeps what belongs to one bundle: the link to the version in use, and a folder for all else."""

    link: Path
    home: Path

    @classmethod
    def of(cls, into: Path, name: str) -> Places:
        return cls(into / f"{name}.bundle", into / STATE / name)

    @property
    def metadata(self) -> Path:
        """Signed metadata that was seen."""
        return self.home / "metadata"

    @property
    def versions(self) -> Path:
        """Folders of versions by their keys."""
        return self.home / "versions"

    @property
    def partial(self) -> Path:
        """Folders of versions that aren't whole yet."""
        return self.home / "partial"

    @property
    def ids(self) -> Path:
        """Ids of packs' pages."""
        return self.home / "ids"


class Installed:
    """The versions of a bundle. Only one process at a time may have one: `alone`."""

    def __init__(self, places: Places) -> None:
        self.places = places

    @classmethod
    @contextmanager
    def alone(cls, into: Path, name: str) -> Iterator[Installed]:
        """Keep other pulls and rollbacks of this bundle away meanwhile.

        Directories are made as they are needed, but for the one above ``into``. Those made here go again if what is
        done meanwhile fails before anything of a version has come.

        Raises:
            DeliveryError: one is going on, or the directory can't be made or written.
        """
        places = Places.of(into, name)
        made = [folder for folder in (places.home, places.home.parent, into) if not os.path.lexists(folder)]
        try:
            into.mkdir(exist_ok=True)
        except OSError as error:
            expected = f"{into}: expected a directory for bundles, it can't be made"
            raise DeliveryError(f"{expected}: {error.strerror}") from error
        try:
            with write_errors():
                places.home.mkdir(parents=True, exist_ok=True)
        except BaseException:
            _remove_empty(made)
            raise
        taken = DeliveryError(
            f"{places.link}: expected to be alone, found another pull or rollback of it; wait for its end"
        )
        with locked(places.home / "lock", os.O_RDWR | os.O_CREAT, taken, write_errors):
            try:
                if os.path.lexists(places.link) and not places.link.is_symlink():
                    raise ConfigError(
                        f"{places.link}: expected a link that 'weightpager pull' made, found something else; rename it "
                        "(its pages are used all the same)"
                    )
                yield cls(places)
            except BaseException:
                if places.home in made and not (places.versions.exists() or places.partial.exists()):
                    shutil.rmtree(places.home, ignore_errors=True)  # whose lock is this process's
                    _remove_empty(made)
                raise

    @staticmethod
    def check_known(into: Path, name: str) -> None:
        """See that pulls have been made of a bundle. Raises `DeliveryError`, which names those that have."""
        if not has_directory(Places.of(into, name).home):
            known = ", ".join(folder.name for folder in Installed._folders(into / STATE)) or "none"
            raise DeliveryError(
                f"{into}: expected a bundle that 'weightpager pull' has installed, found no {name!r}; here are: {known}"
            )

    @property
    def current(self) -> str | None:
        """Key of the version in use; None if there is none."""
        try:
            target = self.places.link.readlink()
        except OSError:
            return None
        return target.parent.name if target.name == BUNDLE else None

    @property
    def refused(self) -> frozenset[str]:
        """Keys of versions that were rolled back."""
        return frozenset(self._state.refused)

    @property
    def unchecked(self) -> bool:
        """Whether the version in use has still to be checked."""
        return self.current is not None and self._state.unchecked == self.current

    def history(self) -> list[str]:
        """Keys of the versions that are here, in the order in which pulls brought them into use or replaced them.

        If that isn't remembered, the oldest comes first.
        """
        return [key for key in self._state.history or self._by_age() if self.has(key)]

    def previous(self) -> str | None:
        """Key of the version that the last pull replaced. Versions that were rolled back are passed over."""
        history, current = self.history(), self.current
        before = history[: history.index(current)] if current in history else history
        return next((key for key in reversed(before) if key not in self.refused), None)

    def has(self, key: str) -> bool:
        """Whether a version is here, whole."""
        return (self.places.versions / key / BUNDLE).is_dir()

    def accept(self, key: str, folder: Path) -> None:
        """Take over a folder with a whole bundle as a version, which is not in use yet."""
        with write_errors():
            _sync_tree(folder)
            self.places.versions.mkdir(exist_ok=True)
            if not self.has(key):
                shutil.rmtree(self.places.versions / key, ignore_errors=True)  # without a bundle it is none
            folder.rename(self.places.versions / key)
            sync(self.places.versions)

    def use(self, key: str, *, checked: bool = True, pulled: bool = False) -> None:
        """Let the bundle's name lead to a version that is here, in one step.

        Unless it is known to be well, `passed` or `refuse` must follow. ``pulled`` says whether a pull wants it: a
        check that fails, and a rollback, go to the version that it replaces.
        """
        state, history = self._state, self.history()
        if pulled:
            before = self.current
            replaced = [] if before is None or before == key else [before]
            history = [*(each for each in history if each not in (*replaced, key)), *replaced, key]
        refused = [each for each in state.refused if each != key]
        # The check of the version in use stays due until the link leads to another one.
        due = state.unchecked if checked else key
        self._remember(_Remembered(history=history, refused=refused, unchecked=due))
        link, new = self.places.link, self.places.home / "link"
        with write_errors():
            new.unlink(missing_ok=True)
            new.symlink_to(Path(STATE, self.places.home.name, "versions", key, BUNDLE))
            new.replace(link)
            sync(link.parent)
        if checked:
            self.passed()

    def passed(self) -> None:
        """Remember that the version in use is well: no check of it is due, and it isn't refused."""
        state, current = self._state, self.current
        refused = [each for each in state.refused if each != current]
        self._remember(structs.replace(state, refused=refused, unchecked=None))

    def refuse(self, key: str) -> None:
        """Remember that a version isn't wanted here."""
        state = self._state
        self._remember(structs.replace(state, refused=[*(each for each in state.refused if each != key), key]))

    def unuse(self) -> None:
        """Remove the bundle's name, so that no version is in use."""
        with write_errors():
            self.places.link.unlink(missing_ok=True)
            sync(self.places.link.parent)

    def prune(self, keep: int) -> None:
        """Remove all but the last so many versions that weren't rolled back; never the one in use."""
        refused = self.refused
        kept = {*[key for key in self.history() if key not in refused][-keep:], self.current}
        for folder in self._folders(self.places.versions):
            if folder.name not in kept:
                self._discard(folder)
        for folder in self._folders(self.places.partial):
            shutil.rmtree(folder, ignore_errors=True)
        left = self.history()
        self._remember(structs.replace(self._state, history=left))

    def _discard(self, folder: Path) -> None:
        """Move a version away in one step, since half of one would count as whole; what can't be moved stays."""
        with suppress(OSError):
            self.places.partial.mkdir(exist_ok=True)
            folder.rename(self.places.partial / f"{folder.name}{_GONE}")
            sync(folder.parent)

    def _by_age(self) -> list[str]:
        folders = self._folders(self.places.versions)
        return [folder.name for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime_ns)]

    @staticmethod
    def _folders(parent: Path) -> list[Path]:
        return sorted(parent.iterdir()) if has_directory(parent) else []

    @property
    def _state(self) -> _Remembered:
        try:
            return _Remembered.read(self._state_path.name, self._state_path.read_bytes())
        except (OSError, BundleFormatError):
            return _Remembered()

    @property
    def _state_path(self) -> Path:
        return self.places.home / "state.json"

    def _remember(self, state: _Remembered) -> None:
        if state != self._state:
            with write_errors(), new_file(self._state_path) as file:
                file.write(json.encode(state))


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove those of the folders, the innermost first, that are empty."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _sync_tree(folder: Path) -> None:
    for inner, _, names in os.walk(folder):
        for name in names:
            sync(Path(inner, name))
        sync(Path(inner))
