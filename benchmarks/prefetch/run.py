"""Prefetch: what switches wait for with it, without it, and with one who knows the future.

    python -m benchmarks.prefetch --json prefetch.json

A model of the shape of Qwen2.5-0.5B with 18 tasks at 75 % sparsity, random weights. In virtual time every trace under
every policy; in real time, on storage held to a stated speed, two traces with prefetch, without, and as people
serve many tasks today.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import typer

from benchmarks import provenance, row_file
from benchmarks.prediction.baselines import FirstOrderPredictor, FrequencyPredictor
from benchmarks.prefetch.oracles import Known, Liar, Oracle
from benchmarks.prefetch.real_time import RIVALS, of_engine, of_rival
from benchmarks.prefetch.rows import Row, line, read, speedups
from weightpager.bundle import Bundle
from weightpager.bundle.footprint import footprint
from weightpager.config import cache_dir
from weightpager.runtime.planning.pages import PrefetchCounts
from weightpager.runtime.prediction.markov import MarkovPredictor
from weightpager.runtime.prediction.planner import CallablePredictor, Planner
from weightpager.runtime.prediction.predictor import TransitionPredictor
from weightpager.runtime.prefetch.expected_uses import ExpectedUses
from weightpager.simulate.simulator import Device, Recency, Simulation, Simulator, UsePredictor
from weightpager.simulate.sizing import PREFETCH, RECENCY, REUSE
from weightpager.store import StorageModel
from weightpager.trace_file import Visit
from weightpager.transitions import Transitions
from weightpager_lab.contest.rivals.assets import write_sparse
from weightpager_lab.synthetic_bundle import assistant_of_many, bundle_of
from weightpager_lab.traces import TRACES, Trace
from weightpager_lab.traces.drive import CHAIN as DRIVE
from weightpager_lab.traces.made import ASSISTANT as ASSISTANT
from weightpager_lab.traces.trace import renamed

Floats = npt.NDArray[np.float64]

BANDWIDTH = 600e6
"""Bytes per second of the storage, in virtual and in real time."""

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
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.simulator = Simulator(bundle)
        self.storage = StorageModel(BANDWIDTH, seconds_per_read=0.0)
        self._dwell = DWELL * self.simulator.differential_bytes / BANDWIDTH

    def trace(self, name: str, switches: int) -> Trace:
        """A trace of the bundle's tasks."""
        made = TRACES[name](switches, self._dwell, SEED)
        names = dict(zip(made.tasks, self.bundle.tasks, strict=False))
        planner = None if made.planner is None else partial(_translated, made.planner, names)
        return replace(made, visits=renamed(made.visits, names), tasks=tuple(names.values()), planner=planner)

    def slots(self, f: float) -> int:
        """Pages that the arena has room for."""
        least, most = self.simulator.largest_task, self.simulator.all_pages
        return round(least + f * (most - least))

    def run(self, trace: Trace, f: float, policy: str) -> Simulation:
        """Under one policy, in virtual time."""
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
) -> None:
    """Measure what prefetch saves."""
    folder = folder or cache_dir() / "benchmarks" / "prefetch"
    bundle = bundle_of(assistant_of_many(), folder, typer.echo)
    rows = [row for row in read(json) if mode not in ("both", _measured_in(row))]
    for measured in (
        in_virtual_time(bundle) if mode != "real" else (),
        in_real_time(bundle, folder) if mode != "virtual" else (),
    ):
        for row in measured:
            rows.append(row)
            typer.echo(line(row))
    for key, value in speedups(rows).items():
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
    """All policies on one trace."""
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


def in_real_time(bundle: Bundle, folder: Path) -> Iterator[Row]:
    """Two traces without and with prefetch, each beside the same in virtual time; and as people do it today."""
    bench, f = Bench(bundle), FRACTIONS[-1]
    budget = footprint(bundle).total + bench.slots(f) * bundle.page_bytes
    with tempfile.TemporaryDirectory(dir=folder) as checkpoints:
        write_sparse(bundle, list(bundle.tasks), Path(checkpoints), lambda _stage, _done, _total: None)
        for trace in (bench.trace(name, REAL) for name in ("assistant", "drive")):
            for policy, prefetch in ((REUSE, False), (PREFETCH, True)):
                simulated = bench.run(trace, f, policy)
                yield row(trace, f, policy, simulated.switches, simulated.prefetched, bench)
                waited, counts = of_engine(bundle, trace.visits, budget, BANDWIDTH, prefetch=prefetch)
                yield row(trace, f, policy, waited, counts, bench, mode="real")
            for policy in RIVALS:
                waited = of_rival(policy, bundle, trace.visits, budget, BANDWIDTH, Path(checkpoints))
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
    """A row of these waits."""
    return Row(
        trace.name, round(trace.first_order_entropy, 3), f, policy, len(seconds),
        wait_ms_mean=round(1e3 * float(seconds.mean()), 3),
        wait_ms_p99=round(1e3 * float(np.percentile(seconds, 99)), 3),
        hit_rate=round(counts.hit_rate, 4),
        wasted_bytes=counts.wasted * bench.bundle.page_bytes,
        oracle_share=None if share is None else round(share, 4),
        mode=mode,
        command=provenance.command("benchmarks.prefetch"),
        commit=provenance.commit(),
        cpu=provenance.cpu(),
    )  # fmt: skip
