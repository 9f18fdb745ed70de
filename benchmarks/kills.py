"""Kill -9 at random moments: the bundle is the old one or the new one, and mending spoils nothing.

python -m benchmarks.kills --moments 200
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import yaml
from safetensors.numpy import save_file

from tests.support.bundles.damage import KINDS, contents, damage, good_pages
from weightpager.backends.verify import verify
from weightpager.bundle import Bundle
from weightpager.bundle.format.manifest import Manifest
from weightpager.bundle.format.names import REPORT
from weightpager.bundle.reader import read_manifest
from weightpager.bundle.repair import repair

_SHORT = {"steps": 4, "batch": 8}


class SpoiledError(Exception):
    """A kill has left something that may never be there."""


class Trial(ABC):
    """A command that is killed again and again.

    Attributes:
        name: of the command.
        arguments: of ``weightpager``.
        target: the bundle that it writes.
    """

    def __init__(self, name: str, arguments: list[str], target: Path) -> None:
        self.name = name
        self.arguments = arguments
        self.target = target

    @abstractmethod
    def reset(self) -> None:
        """Bring back the state that the command starts from, but what killed ones have left beside it."""

    @abstractmethod
    def has_begun(self) -> bool:
        """Whether the command writes to the bundle now."""

    @abstractmethod
    def outcome(self) -> str:
        """What a kill has left, in a word.

        Raises:
            SpoiledError: something that may never be there.
        """

    @abstractmethod
    def check_end(self) -> None:
        """Check what a command that wasn't killed has left.

        Raises:
            SpoiledError: it isn't all well, or something of the killed ones is still there.
        """


class Replacing(Trial):
    """A command that replaces a bundle in one step: there is the old one or the new one."""

    def __init__(self, name: str, arguments: list[str], target: Path, old: Path, kept: tuple[Path, ...] = ()) -> None:
        """Replace ``target``, which is a copy of ``old`` at first; bundles in ``kept`` may not change."""
        super().__init__(name, arguments, target)
        self._old = old
        self._kept = {path: contents(path) for path in kept}
        self._digits = arguments[0] == "compile"
        self._known = {"old": facts(old)}
        self._left: set[Path] = set()

    def reset(self) -> None:
        shutil.rmtree(self.target, ignore_errors=True)
        shutil.copytree(self._old, self.target)
        self._left = set(self._temporaries())

    def has_begun(self) -> bool:
        return any(any(folder.glob("*")) for folder in self._temporaries() if folder not in self._left)

    def outcome(self) -> str:
        """``old`` or ``new``; see `Trial.outcome`.

        A compile's calibration may differ in its last digits from one run to the next, so that its files do, of which
        each still has to be what its manifest says.
        """
        problems = [*verify(self.target).problems, *(f"{path} has changed" for path in self._changed())]
        if problems:
            raise SpoiledError("; ".join(problems))
        found = facts(self.target)
        for name, known in self._known.items():
            if found == known:
                return name
        odd = {key for key, _ in found.items() ^ self._known["new"].items()}
        if self._digits and odd.isdisjoint(set(Manifest.__struct_fields__) - {"page_files"}):
            return "new in other digits"
        raise SpoiledError(f"{self.target} is not the old bundle, and not the new one: {', '.join(sorted(odd))} differ")

    def check_end(self) -> None:
        self._known.setdefault("new", facts(self.target))
        if not self.outcome().startswith("new"):
            raise SpoiledError("the command has ended, and the old bundle is there")
        left = [path.name for path in self.target.parent.glob(f".{self.target.name}.*")]
        if left:
            raise SpoiledError(f"{', '.join(left)}: left behind")

    def _temporaries(self) -> list[Path]:
        return list(self.target.parent.glob(f".{self.target.name}.tmp-*"))

    def _changed(self) -> list[Path]:
        return [path for path, content in self._kept.items() if contents(path) != content]


class Mending(Trial):
    """``verify --repair``: no page or file that was well is spoiled, and running it again mends the rest."""

    def __init__(self, target: Path, original: Path) -> None:
        super().__init__("repair", ["verify", str(target), "--repair", "--from", str(original)], target)
        self._original = original
        self._whole = contents(original)
        self._before: dict[str, bytes] = {}
        self._good: set[int] = set()
        self._times: dict[str, int] = {}

    def reset(self) -> None:
        shutil.rmtree(self.target, ignore_errors=True)
        shutil.copytree(self._original, self.target)
        names = sorted(set(self._whole) - {"manifest.json", "manifest.blake3"})
        pages = [name for name in names if name.startswith("pages-")]
        for name in {*pages, *random.sample(names, len(names) // 2)}:
            damage(self.target / name, random.choice(KINDS), random.getrandbits(32))
        self._before = contents(self.target)
        self._good = set(good_pages(self.target, Bundle.open(self._original)))
        self._times = self._changed_at()

    def has_begun(self) -> bool:
        return self._changed_at() != self._times

    def outcome(self) -> str:
        """``as it was``, ``partly mended`` or ``mended``; see `Trial.outcome`."""
        found = self._check()
        if repair(self.target, self._original).problems or contents(self.target) != self._whole:
            raise SpoiledError("mending again does not mend it")
        return found

    def check_end(self) -> None:
        if contents(self.target) != self._whole:
            raise SpoiledError("mending does not mend it")

    def _changed_at(self) -> dict[str, int]:
        """When each file and folder has changed, in nanoseconds."""
        found = {}
        for folder, _, names in os.walk(self.target):
            for name in (".", *names):
                with suppress(FileNotFoundError):  # renamed meanwhile
                    found[f"{folder}/{name}"] = Path(folder, name).stat().st_mtime_ns
        return found

    def _check(self) -> str:
        """Whether nothing, something or everything has been mended."""
        after = contents(self.target)
        good = set(good_pages(self.target, Bundle.open(self._original)))
        if not good >= self._good:
            raise SpoiledError(f"pages {sorted(self._good - good)} were well and are not now")
        for name in set(self._whole) - set(Bundle.open(self._original).manifest.page_file_names()):
            if after.get(name) not in (self._before.get(name), self._whole[name]):
                raise SpoiledError(f"{name} is neither as it was nor right")
        if after == self._before:
            return "as it was"
        return "mended" if after == self._whole else "partly mended"


def facts(bundle: Path) -> dict[str, str]:
    """What a bundle's manifest says, by field and file, but for its report, which holds times."""
    said = read_manifest(bundle).plain()
    files = said.pop("files")
    return {name: str(value) for name, value in (said | files).items() if name != REPORT}


@dataclass(frozen=True)
class Workplace:
    """A folder with task files of tiny models.

    Attributes:
        folder: that holds all else.
    """

    folder: Path

    def write_task_files(self) -> None:
        """``one.yaml`` and ``two.yaml`` of the same tasks, and ``more.yaml`` of a new one."""
        from tests.support.models import tiny  # torch, which nothing else here needs

        for name, sparsity in (("one", 0.6), ("two", 0.5)):
            self._write(name, tiny.assistant(self.folder, sparsity=sparsity, training=_SHORT))
        pet = tiny.classification(self.folder, "pet", {"cat": ["cat"], "dog": ["dog"]})
        self._write("more", tiny.assistant(self.folder, sparsity=0.5, training=_SHORT) | {"tasks": {"pet": pet}})

    def compiling(self, name: str) -> list[str]:
        """Arguments that compile a task file to the bundle of that name."""
        out = str(self.folder / f"{name}.bundle")
        return ["compile", str(self.folder / f"{name}.yaml"), "--out", out, "--no-cache"]

    def trials(self) -> list[Trial]:
        """All commands; ``one.bundle`` must have been compiled."""
        one, two, more = (self.folder / f"{name}.bundle" for name in ("one", "two", "more"))
        tidy, broken, added = (self.folder / f"{name}.bundle" for name in ("tidy", "broken", "added"))
        return [
            Replacing("compile --force", [*self.compiling("two"), "--force"], two, one),
            Replacing(
                "compile --base", [*self.compiling("more"), "--base", str(one), "--force"], more, one, kept=(one,)
            ),
            Replacing(
                "add", ["add", str(added), str(self._adapter(one)), "--name", "new", "--like", "animal"], added, one
            ),
            Replacing("repack", ["repack", str(tidy), "--out", str(tidy), "--page", "8KiB", "--force"], tidy, one),
            Mending(broken, one),
        ]

    def _adapter(self, bundle: Path) -> Path:
        """A LoRA for the bundle's model, in PEFT's layout."""
        folder, drawn, arrays = self.folder / "lora", np.random.default_rng(0), {}
        for weight in Bundle.open(bundle).manifest.weights:
            module = f"base_model.model.bert.{weight.name.removeprefix('base_model.')}"
            for side, shape in (("A", (4, weight.in_features)), ("B", (weight.out_features, 4))):
                arrays[f"{module}.lora_{side}.weight"] = drawn.standard_normal(shape).astype(np.float32)
        folder.mkdir()
        save_file(arrays, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}', encoding="utf-8")
        return folder

    def _write(self, name: str, content: dict[str, object]) -> None:
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


# Kill -9 at random moments: the bundle is the old one or the new one, and mending spoils nothing.
#
# python -m benchmarks.kills --moments 200


_IMPORTED = [
    "tests.support.models.tiny",
    "weightpager.cli.app",
    "weightpager.compiler.pipeline",
    "weightpager.compiler.repack",
    "weightpager.engine",
]
"""What takes seconds to import, during which there is nothing to spoil: killed processes are forks of one that has."""

_BEYOND = 1.1
"""Moments go this far beyond the time that a command takes, so that its last ones are among them."""

_GLANCE = 2e-4
"""Seconds between looks at whether a command has begun to write."""


@dataclass
class Tally:
    """What has come of a command's moments."""

    passed: int = 0
    ended: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def line(self, name: str) -> str:
        moments = self.passed + len(self.failures)
        found = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.outcomes.items()))
        return f"{name}: {self.passed} of {moments} moments passed ({found}; {self.ended} had ended before the kill)"


@dataclass(frozen=True)
class Pace:
    """Seconds that a command takes, and that it takes from when it begins to write."""

    whole: float
    writing: float


def main(
    moments: Annotated[int, typer.Option(min=1, help="Kills of each command.")] = 200,
    minutes: Annotated[float, typer.Option(help="Stop after so long, whatever is left.")] = 60.0,
) -> None:
    """Kill each command at random moments; half of them while it writes."""
    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory(prefix="weightpager-kills-") as folder:
        tallies = kill_all(Path(folder), moments, end)
    for name, tally in tallies.items():
        typer.echo(tally.line(name))
        for failure in tally.failures:
            typer.echo(f"  {failure}", err=True)
    if any(tally.failures for tally in tallies.values()):
        raise typer.Exit(1)


def kill_all(folder: Path, moments: int, end: float) -> dict[str, Tally]:
    """Take turns among all commands until each has been killed so often, or until ``end``."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    workplace = Workplace(folder)
    finish(_start(context, workplace.write_task_files), "task files")
    finish(_command(context, workplace.compiling("one")), "compile")
    trials = workplace.trials()
    paces = {trial.name: _pace(context, trial) for trial in trials}
    tallies = {trial.name: Tally() for trial in trials}
    for _ in range(moments):
        for trial in trials:
            if time.monotonic() < end:
                _kill_once(context, trial, paces[trial.name], tallies[trial.name])
    for trial in trials:
        _end(context, trial, tallies[trial.name])
    return tallies


def finish(process: ForkServerProcess, name: str) -> None:
    """Wait for a process to end well.

    Raises:
        SpoiledError: it doesn't.
    """
    process.join()
    if process.exitcode != 0:
        raise SpoiledError(f"{name}: exit code {process.exitcode}")


def _pace(context: ForkServerContext, trial: Trial) -> Pace:
    trial.reset()
    process, start = _command(context, trial.arguments), time.monotonic()
    _wait_until_it_writes(process, trial)
    begun = time.monotonic()
    finish(process, trial.name)
    trial.check_end()
    return Pace(time.monotonic() - start, time.monotonic() - begun)


def _kill_once(context: ForkServerContext, trial: Trial, pace: Pace, tally: Tally) -> None:
    trial.reset()
    process = _command(context, trial.arguments)
    if random.random() < 0.5:
        time.sleep(random.uniform(0, _BEYOND * pace.whole))
    else:
        _wait_until_it_writes(process, trial)
        time.sleep(random.uniform(0, _BEYOND * pace.writing))
    tally.ended += not process.is_alive()
    process.kill()
    process.join()
    try:
        tally.outcomes[trial.outcome()] += 1
        tally.passed += 1
    except SpoiledError as error:
        tally.failures.append(str(error))


def _end(context: ForkServerContext, trial: Trial, tally: Tally) -> None:
    """What killed commands have left must not disturb one that isn't killed, and goes with it."""
    trial.reset()
    try:
        finish(_command(context, trial.arguments), trial.name)
        trial.check_end()
    except SpoiledError as error:
        tally.failures.append(f"after all kills: {error}")


def _wait_until_it_writes(process: ForkServerProcess, trial: Trial) -> None:
    while process.is_alive() and not trial.has_begun():
        time.sleep(_GLANCE)


def _command(context: ForkServerContext, arguments: list[str]) -> ForkServerProcess:
    return _start(context, _run, arguments)


def _start(context: ForkServerContext, target: Callable[..., object], *arguments: object) -> ForkServerProcess:
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def _run(arguments: list[str]) -> None:
    import torch

    from weightpager.cli.app import run

    torch.set_num_threads(1)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    sys.argv = ["weightpager", *arguments]
    run()


if __name__ == "__main__":
    typer.run(main)
