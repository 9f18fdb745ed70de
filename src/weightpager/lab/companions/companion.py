"""What companions of a bundle there are: pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from weightpager.bundle import Bundle
from weightpager.errors import ConfigError

Name = Literal["unaligned", "all_blocks", "one_mask"]


@dataclass(frozen=True)
class Companion:
    """A bundle of the same model and tasks that was compiled otherwise.

    Attributes:
        what: a bundle is called, in words.
        stated: in a task file, what it was compiled with.
        settings: the same as values of a task file.
        never_loads: whether all tasks have the same pages, so that a switch reads none.
    """

    what: str
    stated: str
    settings: Mapping[str, Any]
    never_loads: bool = False


COMPANIONS: Mapping[Name, Companion] = {
    "unaligned": Companion("without alignment", "'alignment: 0'", {"alignment": 0.0}),
    "all_blocks": Companion(
        "of all blocks",
        "'sparsity: 0' and 'recover: none'",
        {"sparsity": 0.0, "recover": {"method": "none"}},
        never_loads=True,
    ),
    "one_mask": Companion("of one mask for all tasks", "'alignment: inf'", {"alignment": math.inf}, never_loads=True),
}


def option(name: Name) -> str:
    """The option of ``weightpager bench`` that names one."""
    return f"--{name.replace('_', '-')}"


def path_in(folder: Path, name: Name) -> Path:
    """Where one lies beside the bundle that it belongs to."""
    return folder / f"{name.replace('_', '-')}.bundle"


def check(bundle: Bundle, companions: Mapping[Name, Bundle]) -> None:
    """Refuse what is no companion of a bundle.

    Raises:
        ConfigError: one has other tasks, or tasks with pages of their own although it should never load.
    """
    for name, companion in companions.items():
        where, how = f"{option(name)} {companion.path}", COMPANIONS[name]
        if list(companion.tasks) != list(bundle.tasks):
            raise ConfigError(
                f"{where}: expected the tasks {', '.join(bundle.tasks)}, found {', '.join(companion.tasks)}; "
                f"compile the tasks of {bundle.path} with {how.stated}"
            )
        fewest = min(len(companion.pages_of(task)) for task in companion.tasks)
        if how.never_loads and fewest < len(companion.pages):
            raise ConfigError(
                f"{where}: expected a bundle {how.what}, whose tasks need all pages, found a task that needs {fewest} "
                f"of {len(companion.pages)}; compile one with {how.stated}"
            )
