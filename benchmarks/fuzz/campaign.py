"""Mutants by number: children that make and try them, a parent that notices when a child dies."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from benchmarks.fuzz import trial as guard
from benchmarks.fuzz.mutant import Mutant, Original, make
from benchmarks.fuzz.trial import Plan, Stopped, Trial, attempt

PER_CHILD = 500
"""Mutants after which a fresh child goes on: nothing that one of them left behind lasts."""

MUTANT = "mutant.bundle"

_SILENCE = 300.0
"""Seconds after which a child that says nothing is killed."""


@dataclass(frozen=True)
class Result:
    """What came of one mutant.

    Attributes:
        number: of the mutant.
        original: that it was made of.
        kind: of the change.
        words: what was changed.
        outcome: ``accepted``, ``other answers`` of a sealed mutant, ``refused``, or ``failure``.
        step: at which it was refused or failed.
        what: class of our error, or what went wrong.
        seconds: that it took.
        peak: bytes by which memory rose.
        ran: an engine was asked for.
    """

    number: int
    original: str
    kind: str
    words: str
    outcome: str
    step: str = ""
    what: str = ""
    seconds: float = 0.0
    peak: int = 0
    ran: bool = False

    def __str__(self) -> str:
        return f"{self.original}: {self.words}\n    {self.step}: {self.what}"


@dataclass(frozen=True)
class Campaign:
    """Attributes: what to make mutants of, the seed, and a folder for them on the originals' file system."""

    originals: Sequence[Original]
    seed: int
    folder: Path

    def run(self, numbers: Sequence[int]) -> Generator[Result, None, None]:
        """Try mutants in child processes, one at a time."""
        done = 0
        while done < len(numbers):
            batch = numbers[done : done + PER_CHILD]
            for result in self._child(batch):
                done += 1
                yield result

    def try_one(self, number: int) -> Result:
        """Make a mutant, use it, judge it; in this process, without limits of time and memory."""
        path = self._cleared()
        mutant = make(self.originals, self.seed, number, path)
        plan = _plan(mutant)
        with guard.unprivileged(mutant.locked):
            trial = attempt(path, plan)
        return _judge(mutant, trial, plan)

    def _child(self, numbers: Sequence[int]) -> Generator[Result, None, None]:
        """Results up to the first that ends the child."""
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            self._work(numbers, write)
        os.close(write)
        done, status = 0, 0
        try:
            with os.fdopen(read, "rb") as lines:
                for line in _lines(lines.fileno()):
                    yield Result(**json.loads(line))
                    done += 1
        finally:
            os.kill(child, signal.SIGKILL)  # one that is silent, or not wanted any more
            status = os.waitpid(child, 0)[1]
        if done < len(numbers) and not (os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0):
            yield self._death(numbers[done], status)

    def _work(self, numbers: Sequence[int], write: int) -> NoReturn:
        code = 1
        try:
            guard.limit_address_space()
            for number in numbers:
                result = self._guarded(number)
                os.write(write, json.dumps(asdict(result)).encode() + b"\n")
                if result.outcome == "failure":
                    break  # what it left behind may be anything
            code = 0
        finally:
            os._exit(code)

    def _guarded(self, number: int) -> Result:
        path = self._cleared()
        start, peak = time.perf_counter(), guard.Peak()
        mutant = make(self.originals, self.seed, number, path)
        plan = _plan(mutant)
        try:
            with guard.timed(), guard.unprivileged(mutant.locked), guard.watched() as reached:
                trial = attempt(path, plan)
        except Stopped as stopped:
            trial = Trial(failures={"time": str(stopped)})
        if reached:
            trial.failures["reach"] = ", ".join(sorted(reached))
        rise = peak.rise()
        if rise > guard.PEAK_BYTES:
            trial.failures["memory"] = f"{rise >> 20} MiB"
        return _judge(mutant, trial, plan, time.perf_counter() - start, rise)

    def _cleared(self) -> Path:
        """Where the next mutant goes; nothing is there."""
        path = self.folder / MUTANT
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # rmtree would open a FIFO, and wait
        return path

    def _death(self, number: int, status: int) -> Result:
        path = self._cleared()
        mutant = make(self.originals, self.seed, number, path)
        how = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {status}"
        return _judge(mutant, Trial(failures={"process": f"died: {how}"}), _plan(mutant))


def _plan(mutant: Mutant) -> Plan:
    """Runs a task often where nothing before that looks at what was changed."""
    share = 0.6 if mutant.words.startswith("model/") else 0.12
    draw = mutant.draw
    native = draw.random() < 0.5
    return Plan(mutant.damaged or native, native, draw.random() < share, draw.randrange(64))


def _judge(mutant: Mutant, trial: Trial, plan: Plan, seconds: float = 0.0, peak: int = 0) -> Result:
    outcome, step, what = _outcome(mutant, trial)
    return Result(
        mutant.number, mutant.original.name, mutant.kind, mutant.words, outcome, step, what, seconds, peak, plan.engine
    )


def _outcome(mutant: Mutant, trial: Trial) -> tuple[str, str, str]:
    for step, what in trial.failures.items():
        return "failure", step, what
    differ = [task for task, answer in trial.outputs.items() if mutant.original.outputs.get(task) != answer]
    if differ and not mutant.sealed:
        return "failure", "forward", f"another answer of {differ[0]}, though no hash was recomputed"
    if mutant.damaged and not (trial.problems or trial.refusals):
        return "failure", "verify", "nobody noticed"
    for step, error in trial.refusals.items():
        return "refused", step, type(error).__name__
    if trial.problems:
        return "refused", "verify", "problems"
    return ("other answers" if differ else "accepted"), "", ""


def _lines(descriptor: int) -> Iterator[bytes]:
    """Lines until the other end closes or falls silent."""
    rest = b""
    while select.select([descriptor], [], [], _SILENCE)[0]:
        piece = os.read(descriptor, 1 << 16)
        if not piece:
            return
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
