"""A folder of bundles: which there are, and which of them have changed, come or gone since one looked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from weightpager.bundle.state import State, state_of
from weightpager.engine.bundle_change import BundleChange
from weightpager.errors import BudgetError, BusyError, ConfigError, WeightpagerError, first_line

_log = logging.getLogger(__name__)


class Served(Protocol):
    """What serves the bundles of the folder."""

    def add(self, path: Path) -> str: ...

    def remove(self, name: str) -> None: ...

    def reload(self, name: str) -> BundleChange: ...


@dataclass
class _Known:
    """A bundle that was seen, in the state that it had; by a name once it is served."""

    state: State
    name: str | None


class BundleFolder:
    """The bundles of a folder, as far as they have been taken over. For one thread at a time.

    A bundle that can't be used is said once, and tried again when it changes; one for which there is no room now is
    tried again each time, and said once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[Path, _Known] = {}
        self._said: dict[Path, str] = {}  # of those that had no room

    def bundles(self) -> dict[Path, State]:
        """Directories in it that have a manifest, by path in the order of their names, each with its state.

        Raises:
            ConfigError: it isn't a folder that can be read.
        """
        found = {}
        try:
            for path in sorted(self.path.iterdir()):
                state = None if path.name.startswith(".") else state_of(path)
                if state is not None:
                    found[path] = state
        except OSError as error:
            raise ConfigError(
                f"{self.path}: expected a bundle, or a folder of bundles, found: {error.strerror or error}"
            ) from error
        return found

    def know(self, names: Mapping[Path, str], states: Mapping[Path, State]) -> None:
        """Note which bundles are served already, in the states that they had."""
        self._known = {path: _Known(states[path], name) for path, name in names.items()}

    @property
    def has_changed(self) -> bool:
        """Whether there is anything to take over. A folder that can't be read has what it had."""
        try:
            return self.bundles() != {path: known.state for path, known in self._known.items()}
        except ConfigError:
            return False

    def take_over(self, served: Served) -> None:
        """Have the served bundles follow the folder. What fails is logged, and the others go on."""
        found = self.bundles()
        for path in [path for path in self._known if path not in found]:
            if self._tried(path, served.remove):
                del self._known[path]
        for path, state in found.items():
            known = self._known.get(path)
            if known is None or known.name is None:
                if known is None or known.state != state:
                    self._add(path, state, served)
            elif known.state != state and self._tried(path, served.reload):
                known.state = state

    def _add(self, path: Path, state: State, served: Served) -> None:
        try:
            self._known[path] = _Known(state, served.add(path))
        except (BudgetError, BusyError) as error:
            self._say_once(path, f"has no room yet: {first_line(error)}")
        except WeightpagerError as error:
            self._known[path] = _Known(state, None)
            _log.warning("%s can't be served: %s", path, first_line(error))
        else:
            _log.info("%s is served", path)

    def _say_once(self, path: Path, what: str) -> None:
        if self._said.get(path) != what:
            self._said[path] = what
            _log.warning("%s %s", path, what)

    def _tried(self, path: Path, act: Callable[[str], object]) -> bool:
        """Whether something was done about a bundle, or never can be."""
        name = self._known[path].name
        if name is None:
            return True
        try:
            act(name)
        except (BudgetError, BusyError) as error:
            self._say_once(path, f"goes on as it was for now: {first_line(error)}")
            return False
        except WeightpagerError as error:
            _log.warning("%s goes on as it was: %s", path, first_line(error))
        else:
            _log.info("%s was taken over as it is now", path)
        return True


def is_folder(path: Path) -> bool:
    """Whether a path is a folder that may hold bundles, and no bundle itself."""
    return path.is_dir() and state_of(path) is None
