"""Compiling companions from one preparation, which takes most of the time."""

from __future__ import annotations

from pathlib import Path

from weightpager.bundle import Bundle, writing
from weightpager.compiler.pipeline import build
from weightpager.compiler.resume.compile_run import CompileRun
from weightpager.compiler.selection.prepared import Prepared
from weightpager.compiler.task_file.sections import RecoverSpec
from weightpager.lab.companions.companion import COMPANIONS, Name, path_in


def build_companions(prepared: Prepared, folder: Path, run: CompileRun) -> None:
    """Write all companions into a folder; nothing is compared with them.

    Raises:
        CompileError: one can't be compiled or written.
    """
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
    settings = dict(COMPANIONS[name].settings)
    if "recover" in settings:
        settings["recover"] = RecoverSpec.model_validate(settings["recover"])
    return prepared.changed(**settings, compare="none")
