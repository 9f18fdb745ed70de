"""Companions: other bundles of the same tasks, to compare a bundle with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from weightpager.bundle import Bundle, writing
from weightpager.errors import ConfigError

if TYPE_CHECKING:  # a device measures companions without the compiler
    from weightpager.compiler.resume.journal import CompileRun
    from weightpager.compiler.selection.prepared import Prepared

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


def build_companions(prepared: Prepared, folder: Path, run: CompileRun) -> None:
    """Write all companions into a folder; nothing is compared with them.

    Raises:
        CompileError: one can't be compiled or written.
    """
    from weightpager.compiler.pipeline import build
    from weightpager.compiler.resume.journal import CompileRun

    for name in COMPANIONS:
        own = CompileRun(
            run.progress, run.journal.part(name), seconds=dict(run.seconds), peak_memory=dict(run.peak_memory)
        )
        with writing(path_in(folder, name), force=True) as writer:
            build(writer, _changed(prepared, name), own)


def companions_in(folder: Path) -> dict[Name, Bundle]:
    """The companions in a folder; empty if one is missing.

    Raises:
        BundleError: one is damaged.
    """
    paths = {name: path_in(folder, name) for name in COMPANIONS}
    there = all(path.is_dir() for path in paths.values())
    return {name: Bundle.open(path) for name, path in paths.items()} if there else {}


def _changed(prepared: Prepared, name: Name) -> Prepared:
    from weightpager.compiler.task_file.sections import RecoverSpec

    settings = dict(COMPANIONS[name].settings)
    if "recover" in settings:
        settings["recover"] = RecoverSpec.model_validate(settings["recover"])
    return prepared.changed(**settings, compare="none")
