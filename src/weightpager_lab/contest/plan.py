"""What a contest is to measure, and how long it may take: pure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from weightpager.bundle import Bundle
from weightpager.errors import BundleError, ConfigError
from weightpager.machine.packages import check_installed
from weightpager_lab.companions import COMPANIONS, Name, path_in
from weightpager_lab.contest.result import Limits
from weightpager_lab.contest.rivals.methods import Method

_LARGE = 256 << 20
_QUICK_TASKS = 3

_TIMEOUT = 900.0
_QUICK_SECONDS = 150.0

LEAST_SECONDS = 15.0
"""A method needs at least so long."""


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        bundle: the tasks.
        companions: those of its companions that there are.
        limits: of every process.
        quick: shorter, and accuracy as the compile measured it.
        repeats: of every ordered pair.
        seconds: for the pairs of one method.
        visits: of the trace.
        rooms: for methods that can use more memory, how many tasks the further budgets have room for.
        seed: of orders and inputs.
        random_weights: whether the bundle stands for speed and memory only.
        methods: names of those to run; all if empty.
        command: that was typed.
        end: by `time.monotonic`, when no further method is begun and a running one is killed; None for never.
    """

    bundle: Bundle
    companions: Mapping[Name, Bundle] = field(default_factory=dict)
    limits: Limits = field(default_factory=lambda: Limits(memory=None, storage=None, cpus=None))
    quick: bool = False
    repeats: int = 5
    seconds: float = 60.0
    visits: int = 40
    rooms: tuple[float, ...] = (1.5, 2.0)
    seed: int = 0
    random_weights: bool = False
    methods: tuple[str, ...] = ()
    command: str = ""
    end: float | None = None

    @property
    def tasks(self) -> list[str]:
        """The tasks that are visited; only some in a quick contest of a large model, whose modules take long."""
        names = list(self.bundle.tasks)
        return names[:_QUICK_TASKS] if self.quick and self.bundle.dense_bytes > _LARGE else names

    @property
    def seconds_left(self) -> float:
        return _TIMEOUT if self.end is None else max(LEAST_SECONDS, self.end - time.monotonic())

    def rooms_of(self, method: Method) -> Iterator[float]:
        """The budgets that a method is measured under, in tasks that they have room for."""
        if method.rooms != "more" or not self.rooms:
            yield 1.0
        if method.rooms != "one":
            yield from self.rooms


def quick(plan: Plan) -> Plan:
    """The same plan for less than three minutes from now on; methods that get no time are marked as skipped."""
    return replace(plan, quick=True, repeats=2, seconds=4.0, visits=12, rooms=(), end=time.monotonic() + _QUICK_SECONDS)


@dataclass(frozen=True)
class Subject:
    """A bundle, those of its companions that there are, and whether its weights are random."""

    bundle: Bundle
    companions: Mapping[Name, Bundle] = field(default_factory=dict)
    random_weights: bool = False


def usual_subject(cache: Path, report: Callable[[str], None], *, quick: bool) -> Subject:
    """The demo's bundle if the cache has it, else random weights in the shape of a model of half a billion parameters.

    Raises:
        ConfigError, CompileError: the random one can't be written; torch writes it.
    """
    for path in sorted((cache / "demo").glob("*/aligned.bundle"), key=lambda path: -path.stat().st_mtime):
        try:
            return Subject(Bundle.open(path), _companions_beside(path))
        except BundleError as error:
            report(f"{path} is passed over: {error}")
    check_installed("torch", "bench", "to write random weights, or name a BUNDLE")
    from weightpager_lab.synthetic_bundle import bundle_of, companions_of, quarter_kept

    folder = cache / "benchmarks" / "contest"
    try:
        companions = {} if quick else companions_of(quarter_kept(), folder, report)
        return Subject(bundle_of(quarter_kept(), folder, report), companions, random_weights=True)
    except OSError as error:
        raise ConfigError(
            f"bench: cannot write random weights into {folder}: {error.strerror or error}; name a BUNDLE, or another "
            "cache by WEIGHTPAGER_CACHE"
        ) from error


def _companions_beside(bundle: Path) -> dict[Name, Bundle]:
    paths = {name: path_in(bundle.parent, name) for name in COMPANIONS}
    return {name: Bundle.open(path) for name, path in paths.items() if path.is_dir()}
