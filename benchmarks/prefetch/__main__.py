"""Prefetch: what switches wait for with it, without it, and with one who knows the future.

    python -m benchmarks.prefetch --json prefetch.json

A model of the shape of Qwen2.5-0.5B with 18 tasks at 75 % sparsity, random weights. In virtual time every trace under
every policy; in real time, on storage held to a stated speed, two traces with prefetch, without, and as people
serve many tasks today.

    python -m benchmarks.prefetch --json prefetch.json --driving BUNDLE

The same in real time for the drive trace and the driving domain's bundle, which `benchmarks.driving` names.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import typer

from benchmarks import row_file
from benchmarks.drive import visits as drive_visits
from benchmarks.prediction import FirstOrderPredictor, FrequencyPredictor
from benchmarks.prefetch.rows import DRIVING, RIVALS, Row, line, read, shares, speedups
from weightpager.bundle import Bundle
from weightpager.bundle.footprint import footprint
from weightpager.config import EngineConfig, cache_dir
from weightpager.engine import Engine
from weightpager.runtime.planning.pages import PrefetchCounts
from weightpager.runtime.prediction.markov import MarkovPredictor
from weightpager.runtime.prediction.planner import CallablePredictor, Planner
from weightpager.runtime.prediction.predictor import Forecast, TransitionPredictor
from weightpager.runtime.prediction.task_monitor import DISCOUNT
from weightpager.runtime.prefetch.expected_uses import ExpectedUses
from weightpager.simulate.simulator import Device, Recency, Simulation, Simulator, UsePredictor
from weightpager.simulate.sizing import PREFETCH, RECENCY, REUSE
from weightpager.store import StorageModel
from weightpager.trace_file import Visit
from weightpager.transitions import Transitions
from weightpager_lab.contest.rivals.assets import write_sparse
from weightpager_lab.contest.rivals.methods import method
from weightpager_lab.contest.rivals.rival import Pace, Setting, slow_engines
from weightpager_lab.synthetic_bundle import assistant_of_many, bundle_of
from weightpager_lab.timing import seconds_of, spread
from weightpager_lab.trace import renamed
from weightpager_lab.traces import ASSISTANT as ASSISTANT
from weightpager_lab.traces import DRIVE as DRIVE
from weightpager_lab.traces import TRACES, Trace

Floats = npt.NDArray[np.float64]

_AHEAD = 40
"""Switches ahead that are looked at: what comes later counts nothing."""


class Oracle:
    """Knows what comes, and values it as the engine does what it expects: the nearer, the more.

    Attributes:
        place: visits observed so far.
    """

    def __init__(self, trace: Sequence[int], tasks: int) -> None:
        """Know a trace.

        Args:
            trace: the tasks as they will come.
            tasks: how many there are.
        """
        self._trace = np.array(trace)
        self._tasks = tasks
        self.place = 0

    def observe(self, task: int, seconds: float) -> None:  # noqa: ARG002 - the protocol's
        assert self._trace[self.place] == task
        self.place += 1

    def uses(self, seconds: float) -> Floats:  # noqa: ARG002 - the protocol's
        return self._from(self.place)

    def uses_after(self, task: int) -> Floats:  # noqa: ARG002 - the protocol's
        return self._from(self.place + 1)

    def _from(self, place: int) -> Floats:
        ahead = self._trace[place : place + _AHEAD]
        return np.bincount(ahead, DISCOUNT ** np.arange(len(ahead)), self._tasks).astype(np.float64)


class Known:
    """A predictor that knows the probabilities by which a trace of first order was made."""

    def __init__(self, matrix: Floats) -> None:
        self._matrix = matrix
        self._current = 0

    def observe(self, task: int, seconds: float) -> None:  # noqa: ARG002 - the protocol's
        self._current = task

    def interrupt(self) -> None:
        """See `TransitionPredictor`."""

    def forecast(self, seconds: float) -> Forecast:  # noqa: ARG002 - the protocol's
        return Forecast(self._matrix[self._current], None)


class Liar:
    """Says the reverse for a while: what won't be used is told to be used. About eviction it doesn't lie."""

    def __init__(self, learner: ExpectedUses, oracle: Oracle, lies: int) -> None:
        """Know a trace, but don't tell.

        Args:
            learner: what it is compared with, and evicts like.
            oracle: whose forecasts are reversed.
            lies: visits until it says the truth.
        """
        self._learner, self._oracle, self._lies = learner, oracle, lies

    def observe(self, task: int, seconds: float) -> None:
        self._learner.observe(task, seconds)
        self._oracle.observe(task, seconds)

    def uses(self, seconds: float) -> Floats:
        truth = self._oracle.uses(seconds)
        return truth if self._oracle.place > self._lies else np.asarray(truth.max() - truth)

    def uses_after(self, task: int) -> Floats:
        return self._learner.uses_after(task)


def of_engine(
    bundle: Bundle, visits: Sequence[Visit], budget: int, bandwidth: float, *, prefetch: bool
) -> tuple[Floats, PrefetchCounts]:
    """Seconds that each switch but the first waits, and what was prefetched."""
    config = EngineConfig(budget, prefetch=prefetch)
    with slow_engines(bandwidth), Engine(bundle, config) as engine:
        for name in bundle.tasks:
            engine.module(name)
        waited = _replayed(engine.activate, visits)
        ahead = engine.report().prefetch
    return waited, PrefetchCounts() if ahead is None else ahead.pages


def of_rival(
    policy: str, bundle: Bundle, visits: Sequence[Visit], budget: int, bandwidth: float, folder: Path
) -> Floats:
    """Seconds that each switch but the first waits where whole tasks are loaded.

    Args:
        policy: one of `RIVALS`.
        bundle: of the tasks.
        visits: oldest first.
        budget: bytes of weights, for the one that keeps several tasks.
        bandwidth: of the storage, in bytes a second.
        folder: that holds the tasks' sparse checkpoints.
    """
    setting = Setting(bundle, tuple(bundle.tasks), folder, budget, EngineConfig().io_threads, Pace(bandwidth))
    rival = method(RIVALS[policy]).make(setting)
    try:
        return _replayed(rival.switch, visits)
    finally:
        rival.close()


def _replayed(switch: Callable[[str], object], visits: Sequence[Visit]) -> Floats:
    """A task runs, from when it is there, for as long as lies between its visit's start and the next one's."""
    waited = []
    for visit, following in zip(visits, [*visits[1:], visits[-1]], strict=True):
        waited.append(seconds_of(partial(switch, visit.task)))
        time.sleep(max(0.0, following.start - visit.start))
    return np.array(waited[1:])


BANDWIDTH = 600e6
"""Bytes per second of the storage, in virtual and in real time."""

DRIVING_BANDWIDTH = 300e6
"""The same of the driving domain's bundle, as in its contest."""

DWELL = 2.0
"""Mean time between switches, in what an average differential set takes to load."""

LEARNT, COUNTED = 200, 300
"""Switches that predictors only learn from, and those that are measured."""

REAL = 60
"""Switches of a real run, measured from the first one on."""

FRACTIONS = (0.0, 0.25, 0.5)
SEED = 1


class Bench:
    """A bundle, and traces that are scaled to it.

    Args:
        bundle: whose tasks stand for those of the traces, in their order.
        bandwidth: of the storage, in bytes a second.
    """

    def __init__(self, bundle: Bundle, bandwidth: float = BANDWIDTH) -> None:
        self.bundle = bundle
        self.bandwidth = bandwidth
        self.simulator = Simulator(bundle)
        self.storage = StorageModel(bandwidth, seconds_per_read=0.0)
        self._dwell = DWELL * self.simulator.differential_bytes / bandwidth

    def trace(self, name: str, switches: int) -> Trace:
        made = TRACES[name](switches, self._dwell, SEED)
        names = dict(zip(made.tasks, self.bundle.tasks, strict=False))
        planner = None if made.planner is None else partial(_translated, made.planner, names)
        return replace(made, visits=renamed(made.visits, names), tasks=tuple(names.values()), planner=planner)

    def driving(self, switches: int) -> Trace:
        """The drive trace of a bundle of the driving domain; nobody announces what comes next."""
        visits = drive_visits(2 * switches, self._dwell, SEED)[: switches + 1]
        return Trace(DRIVING, tuple(self.bundle.tasks), visits, None)

    def slots(self, f: float) -> int:
        least, most = self.simulator.largest_task, self.simulator.all_pages
        return round(least + f * (most - least))

    def run(self, trace: Trace, f: float, policy: str) -> Simulation:
        device = Device(self.slots(f), self.storage)
        return self.simulator.run(
            trace.visits, device, self._use_predictor(trace, policy), prefetch=policy not in PLAIN
        )

    def _use_predictor(self, trace: Trace, policy: str) -> UsePredictor:
        if policy == RECENCY:
            return Recency()
        tasks = len(self.bundle.tasks)
        oracle = Oracle([self.bundle.task_numbers[visit.task] for visit in trace.visits], tasks)
        if policy == "oracle":
            return oracle
        seconds = self.storage.seconds(0, round(self.simulator.differential_bytes))
        if policy == "generator":
            matrix = self._matrix(GENERATORS[trace.name].states)
            return ExpectedUses(Known(matrix), np.int64(matrix * 10**6), [[self._dwell]] * tasks, seconds)
        learner = ExpectedUses.blank(self._predictor(trace, policy), tasks, seconds)
        return Liar(learner, oracle, LIES[policy]) if policy in LIES else learner

    def _predictor(self, trace: Trace, policy: str) -> TransitionPredictor:
        tasks = len(self.bundle.tasks)
        if policy == "planner":
            assert trace.planner is not None
            return CallablePredictor(trace.planner, tuple(self.bundle.tasks), MarkovPredictor(tasks))
        if policy == MATRIX:
            other = TRACES[trace.name](LEARNT + COUNTED, self._dwell, SEED + 1)
            names = [visit.task for visit in other.visits]
            return MarkovPredictor(tasks, self._matrix(Transitions.from_trace(other.tasks, names)))
        return PREDICTORS.get(policy, MarkovPredictor)(tasks)

    def _matrix(self, transitions: Transitions) -> Floats:
        """For all of the bundle's tasks; those that a trace lacks are followed by any other."""
        whole, size = np.array(Transitions.uniform(list(self.bundle.tasks)).matrix), len(transitions.tasks)
        whole[:size] = 0.0
        whole[:size, :size] = transitions.matrix
        return whole


def _translated(planner: Planner, names: Mapping[str, str], visits: Sequence[Visit]) -> dict[str, float]:
    """What a planner says, who knows the tasks by other names."""
    back = {new: old for old, new in names.items()}
    said = planner([replace(visit, task=back[visit.task]) for visit in visits])
    return {names[name]: weight for name, weight in said.items()}


PLAIN = (RECENCY, REUSE)
"""Policies that prefetch nothing."""

MATRIX = f"{PREFETCH}, matrix"
"""As `PREFETCH`, with the transition matrix of another day."""

PREDICTORS: dict[str, Callable[[int], TransitionPredictor]] = {
    "frequency": FrequencyPredictor,
    "first order": FirstOrderPredictor,
}
"""What stands for `MarkovPredictor`."""

RECOVERY = 50
"""Switches after which a predictor that has become right must be used again."""

LIES = {"liar": LEARNT + COUNTED, "liar, then truthful": LEARNT - RECOVERY}
"""Visits about which a predictor is wrong on purpose."""

POLICIES = (*PLAIN, "frequency", "first order", PREFETCH, MATRIX, "oracle")

GENERATORS = {"assistant": ASSISTANT, "drive": DRIVE}
"""Of traces of first order: one who knows these probabilities and not the future is as good as any predictor can be."""


def main(
    json: Annotated[Path, typer.Option(help="File of rows; those of a mode that isn't measured now stay.")],
    mode: Annotated[Literal["both", "virtual", "real"], typer.Option(help="Which time to measure in.")] = "both",
    folder: Annotated[Path | None, typer.Option(help="Where the synthetic bundle is kept.")] = None,
    driving: Annotated[
        Path | None, typer.Option(help="The driving domain's bundle: only the drive trace on it, in real time.")
    ] = None,
) -> None:
    """Measure what prefetch saves."""
    if driving is not None and mode == "virtual":
        raise typer.BadParameter("expected real time for --driving, found --mode virtual", param_hint="--mode")
    rows, measured = read(json), list[Iterator[Row]]()
    if driving is not None:
        rows = [row for row in rows if row.trace != DRIVING]
        measured.append(of_driving(Bundle.open(driving)))
    else:
        folder = folder or cache_dir() / "benchmarks" / "prefetch"
        bundle = bundle_of(assistant_of_many(), folder, typer.echo)
        rows = [row for row in rows if row.trace == DRIVING or mode not in ("both", _measured_in(row))]
        measured += [in_virtual_time(bundle)] * (mode != "real")
        measured += [of_assistant(bundle, folder)] * (mode != "virtual")
    for row in chain.from_iterable(measured):
        rows.append(row)
        typer.echo(line(row))
    for key, value in {**speedups(rows), **shares(rows)}.items():
        typer.echo(f"{key} = {value:.4g}")
    row_file.write(json, rows)


def _measured_in(row: Row) -> str:
    """Rows in virtual time that only stand beside real ones belong to these."""
    return "real" if row.switches == REAL else "virtual"


def in_virtual_time(bundle: Bundle) -> Iterator[Row]:
    """All policies on all traces; virtual time doesn't mind company."""
    jobs = [(bundle.path, name, f) for name in TRACES for f in FRACTIONS]
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        for found in pool.map(virtual, *zip(*jobs, strict=True)):
            yield from found


def virtual(path: Path, name: str, f: float) -> list[Row]:
    bench = Bench(Bundle.open(path))
    trace = bench.trace(name, LEARNT + COUNTED)
    policies = [
        *POLICIES,
        *(["generator"] if name in GENERATORS else []),
        *(["planner"] if trace.planner else []),
        *(LIES if name == "assistant" else []),
    ]
    found = {policy: bench.run(trace, f, policy) for policy in policies}
    counted = {policy: waits(simulation, policy) for policy, simulation in found.items()}
    saved = float(counted[REUSE].mean() - counted["oracle"].mean())
    rows = []
    for policy, simulation in found.items():
        plain = waits(found[REUSE], policy).mean()
        share = float(plain - counted[policy].mean()) / saved if saved > 1e-9 else None
        rows.append(row(trace, f, policy, counted[policy], simulation.prefetched, bench, share))
    return rows


def waits(simulation: Simulation, policy: str) -> Floats:
    """Seconds of the waits that count: of one who lies from the first on, since it is how it begins that matters."""
    return simulation.switches if policy == "liar" else simulation.switches[LEARNT:]


def of_assistant(bundle: Bundle, folder: Path) -> Iterator[Row]:
    bench = Bench(bundle)
    return in_real_time(bench, [bench.trace(name, REAL) for name in ("assistant", "drive")], folder)


def of_driving(bundle: Bundle) -> Iterator[Row]:
    bench = Bench(bundle, DRIVING_BANDWIDTH)
    return in_real_time(bench, [bench.driving(REAL)], bundle.path.absolute().parent)


def in_real_time(bench: Bench, traces: Sequence[Trace], folder: Path) -> Iterator[Row]:
    """Traces without and with prefetch, each beside the same in virtual time; and as people do it today."""
    bundle, f = bench.bundle, FRACTIONS[-1]
    budget = footprint(bundle).total + bench.slots(f) * bundle.page_bytes
    with tempfile.TemporaryDirectory(dir=folder) as checkpoints:
        write_sparse(bundle, list(bundle.tasks), Path(checkpoints), lambda _stage, _done, _total: None)
        for trace in traces:
            for policy, prefetch in ((REUSE, False), (PREFETCH, True)):
                simulated = bench.run(trace, f, policy)
                yield row(trace, f, policy, simulated.switches, simulated.prefetched, bench)
                waited, counts = of_engine(bundle, trace.visits, budget, bench.bandwidth, prefetch=prefetch)
                yield row(trace, f, policy, waited, counts, bench, mode="real")
            for policy in RIVALS:
                waited = of_rival(policy, bundle, trace.visits, budget, bench.bandwidth, Path(checkpoints))
                yield row(trace, f, policy, waited, PrefetchCounts(), bench, mode="real")


def row(
    trace: Trace,
    f: float,
    policy: str,
    seconds: Floats,
    counts: PrefetchCounts,
    bench: Bench,
    share: float | None = None,
    mode: str = "virtual",
) -> Row:
    found = spread(seconds.tolist())
    assert found is not None
    return Row(
        trace.name, round(trace.first_order_entropy, 3), f, policy, len(seconds),
        wait_ms_mean=round(1e3 * found["mean"], 3),
        wait_ms_p99=round(1e3 * found["p99"], 3),
        hit_rate=round(counts.hit_rate, 4),
        wasted_bytes=counts.wasted * bench.bundle.page_bytes,
        oracle_share=None if share is None else round(share, 4),
        mode=mode,
        command=row_file.command("benchmarks.prefetch"),
        commit=row_file.commit(),
        cpu=row_file.cpu(),
    )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
