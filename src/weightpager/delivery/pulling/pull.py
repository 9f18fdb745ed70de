"""Pulling a bundle, and rolling it back: whatever happens, the bundle in use is the old one or the new one, whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from weightpager.delivery.pulling.fetch import Fetch
from weightpager.delivery.pulling.installed import Installed
from weightpager.delivery.pulling.plan import Cost
from weightpager.delivery.pulling.trust import signed_version
from weightpager.delivery.sources import Source
from weightpager.delivery.version_file import VersionFile, channel_target, version_target
from weightpager.errors import DeliveryError
from weightpager.progress import Progress, silent

Check = Callable[[Path], str | None]
"""Looks at a bundle that has just come into use; what is wrong with it, or None."""

Outcome = Literal["installed", "current", "refused", "rolled back", "would install"]


@dataclass(frozen=True)
class Wish:
    """What is wanted of a repository.

    Attributes:
        version: the version that is wanted whatever the channel says; None for the channel's.
        root: the root metadata that is trusted; None for the one that was seen last.
        again: whether a version that was rolled back is taken.
    """

    name: str
    channel: str = "stable"
    version: str | None = None
    root: bytes | None = None
    again: bool = False

    @property
    def target(self) -> str:
        return (
            channel_target(self.name, self.channel) if self.version is None else version_target(self.name, self.version)
        )


@dataclass(frozen=True)
class Pulled:
    """The result of a pull.

    Attributes:
        version: the version that the repository offers.
        in_use, path: the version in use now, and the path that leads to it; None if there is none.
        received: number of bytes that came, metadata included.
        whole_files: whether the server gave whole files where parts were asked for.
        cost: the version's cost beside the signed metadata; None if it was here.
        problem: the problem that the check has found; None if it found none.
    """

    outcome: Outcome
    version: str
    in_use: str | None
    path: Path
    received: int
    whole_files: bool
    cost: Cost | None = None
    problem: str | None = None


def pull(
    source: Source,
    into: Path,
    wish: Wish,
    *,
    keep: int = 2,
    connections: int = 4,
    check: Check | None = None,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Pulled:
    """Bring a bundle up to date in the directory ``into``, which is made if the one above it is there.

    Args:
        source: of the repository.
        into: directory of the device's bundles.
        wish: what is wanted.
        keep: versions that stay, the one in use included; those that were rolled back go.
        connections: at once.
        check: of the new version in use; if it finds something, the version before comes back.
        dry_run: only say what would come.
        progress: told of progress.

    Raises:
        DeliveryError: it can't be fetched, trusted or written. The bundle in use stays. If it would have been the
            first one, and nothing of it has come, no trace stays.
    """
    with Installed.alone(into, wish.name) as installed:
        version = signed_version(source, installed.places.metadata, wish.target, wish.root)
        if version.name != wish.name:
            raise DeliveryError(f"{wish.target}: expected a version of {wish.name}, found one of {version.name}")
        return _Pull(source, into, installed, version, check, progress).run(wish, keep, connections, dry_run=dry_run)


class _Pull:
    """One pull of one version."""

    def __init__(
        self,
        source: Source,
        into: Path,
        installed: Installed,
        version: VersionFile,
        check: Check | None,
        progress: Progress,
    ) -> None:
        self._source = source
        self._into = into
        self._installed = installed
        self._version = version
        self._check = check
        self._progress = progress

    def run(self, wish: Wish, keep: int, connections: int, *, dry_run: bool) -> Pulled:
        """See `pull`."""
        key, installed = self._version.key, self._installed
        if installed.current != key and not dry_run:
            current = installed.current
            if current is not None and installed.unchecked:  # its own check was interrupted
                self._problem(current)
        due = installed.unchecked and self._check is not None
        if installed.current == key and (dry_run or not due):
            return self._done("current")
        if key in installed.refused and installed.current != key and not wish.again:
            return self._done("refused")
        cost: Cost | None = None
        if not installed.has(key):
            fetch = Fetch(self._source, self._into, installed.places, self._version, connections, self._progress)
            if dry_run:
                return self._done("would install", fetch.cost())
            cost = fetch.run()
            installed.accept(key, fetch.folder)
        elif dry_run:
            return self._done("would install")
        return self._use(key, keep, cost)

    def _use(self, key: str, keep: int, cost: Cost | None) -> Pulled:
        installed = self._installed
        if installed.current != key:
            installed.use(key, checked=self._check is None, pulled=True)
        problem = self._problem(key)
        if problem is not None:
            return self._done("rolled back", cost, problem)
        installed.prune(keep)
        return self._done("installed", cost)

    def _problem(self, key: str) -> str | None:
        """What the check finds of the version in use; if it finds something, the version before comes back."""
        if self._check is None:
            return None
        problem = self._check(self._installed.places.link)
        if problem is None:
            self._installed.passed()
        else:
            self._reject(key)
        return problem

    def _reject(self, key: str) -> None:
        before = self._installed.previous()
        self._installed.refuse(key)
        if before is None:
            self._installed.unuse()
        else:
            self._installed.use(before)

    def _done(self, outcome: Outcome, cost: Cost | None = None, problem: str | None = None) -> Pulled:
        return Pulled(
            outcome,
            self._version.version,
            _name(self._installed.current),
            self._installed.places.link,
            self._source.received,
            self._source.whole_files,
            cost,
            problem,
        )


@dataclass(frozen=True)
class RolledBack:
    """The version that was in use before a rollback, the one in use now, and the path that leads to it."""

    before: str | None
    now: str | None
    path: Path


def roll_back(into: Path, name: str, to: str | None = None) -> RolledBack:
    """Let a bundle's name lead to another version that is here; None for the one before.

    The version that was in use isn't installed again by itself if it came after the other one. Else it stays what a
    rollback goes to.

    Raises:
        DeliveryError: it isn't here, or it is in use.
    """
    Installed.check_known(into, name)
    with Installed.alone(into, name) as installed:
        before, history = installed.current, installed.history()
        key = installed.previous() if to is None else _named(history, to)
        if key is None:
            known = ", ".join(map(VersionFile.name_of, history)) or "none"
            raise DeliveryError(
                f"{installed.places.link}: expected {to or 'a version before the one in use'}, found none; here are: "
                f"{known}. 'weightpager pull --version' brings another one"
            )
        if key == before:
            raise DeliveryError(f"{installed.places.link}: expected another version than {to}, which is in use already")
        if before in history and history.index(key) < history.index(before):
            installed.refuse(before)
        installed.use(key)
        return RolledBack(_name(before), VersionFile.name_of(key), installed.places.link)


def _named(keys: Sequence[str], wanted: str) -> str | None:
    """The last version that has this name or key, if there is one."""
    return next((key for key in reversed(keys) if wanted in (key, VersionFile.name_of(key))), None)


def _name(key: str | None) -> str | None:
    """The name of the version that has this key, if there is one."""
    return None if key is None else VersionFile.name_of(key)
