"""One measurement, in a process of its own: ``python -m benchmarks.box.trial SPEC``, which prints figures as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from statistics import fmean

import numpy as np

from benchmarks.box.boxes import METHODS, OF_A_ROUND, Box, Bundles, Ours
from benchmarks.box.processes import storage
from benchmarks.box.requests import PAUSE, Request, answer, kind_of, opening_bytes, rounds, trace
from benchmarks.box.rows import RESIDENT
from weightpager.bundle import Bundle
from weightpager.config import EngineConfig
from weightpager.engine import Engine, Models
from weightpager.machine.memory import forget_peak, peak_memory
from weightpager.runtime.shared_budget import named
from weightpager_lab.timing import seconds_of

Figures = dict[str, float]


@dataclass(frozen=True)
class Spec:
    """What is measured.

    Attributes:
        kind: ``trace``, ``rounds``, ``steps``, ``alone`` or `RESIDENT`, which is a trace, too.
        bundles: their directories.
        method: of `METHODS`; of ``alone``, ``Models`` or ``Engine``.
        budget: bytes.
        rate: bytes a second of the storage; 0 for the disk as it is.
        requests: of a trace.
        seed: of the trace.
    """

    kind: str
    bundles: Sequence[str]
    method: str
    budget: int
    rate: float
    requests: int
    seed: int

    @property
    def opened(self) -> dict[str, Bundle]:
        return {name: Bundle.open(path) for name, path in named(self.bundles).items()}

    def __str__(self) -> str:
        return json.dumps(asdict(self))


def in_a_process(spec: Spec) -> list[Figures]:
    """Figures, by a process of its own."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.box.trial", str(spec)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{spec.method}, {spec.kind}: {done.stderr[-2000:]}")
    found: list[Figures] = json.loads(done.stdout)
    return found


def main(spec: Spec) -> list[Figures]:
    bundles = spec.opened
    if spec.kind == "steps":
        return list(steps(bundles, spec.budget, spec.rate))
    if spec.kind in ("trace", RESIDENT):
        requests = trace(bundles, spec.requests, spec.seed)
        return [of_trace(METHODS[spec.method], bundles, requests, spec)]
    if spec.kind == "rounds":
        requests = rounds(bundles, spec.requests, spec.seed)
        return [of_trace(OF_A_ROUND[spec.method], bundles, requests, spec, pause=PAUSE)]
    return [alone(bundles, spec)]


def of_trace(
    new: Callable[[Bundles, int, float], Box],
    bundles: Bundles,
    requests: Sequence[Request],
    spec: Spec,
    *,
    pause: float = 0.0,
) -> Figures:
    """Waits of a trace's requests, after each task has been asked once; and the most that was held."""
    with closing(new(bundles, spec.budget, spec.rate)) as box:
        for name, bundle in bundles.items():
            for task in bundle.tasks:
                first = Request(name, task, kind_of(bundle), 0)
                box.enter(first)
                box.answer(first)
        return replayed(box, requests, spec.budget, pause)


def replayed(box: Box, requests: Sequence[Request], budget: int, pause: float = 0.0) -> Figures:
    waits, answers, held, memory = list[float](), list[float](), list[int](), list[int]()
    by_kind = dict[str, list[float]]()
    read, opened = box.read(), box.opened
    forget_peak()
    for request in requests:
        for seconds, step in ((waits, box.enter), (answers, box.answer)):
            seconds.append(_timed(step, request))
            held.append(box.held())
        by_kind.setdefault(f"answer_{request.kind}", []).append(answers[-1])
        memory.append(box.memory())
        time.sleep(pause)
    return {
        **spread_of(waits, answers),
        **{name: fmean(seconds) for name, seconds in by_kind.items()},
        "read_bytes": box.read() - read,
        "opened": box.opened - opened,
        "held_bytes": max(held),
        "violations": sum(each > budget for each in held),
        "process_bytes": max(memory),
        "peak_bytes": peak_memory() or 0,
    }


def spread_of(waits: Sequence[float], answers: Sequence[float]) -> Figures:
    return {
        "wait": fmean(waits),
        "wait_p95": float(np.percentile(waits, 95)),
        "answer": fmean(answers),
        "requests": len(waits),
    }


def _timed(step: Callable[[Request], None], request: Request) -> float:
    return seconds_of(lambda: step(request))


def steps(bundles: Mapping[str, Bundle], budget: int, rate: float) -> Iterator[Figures]:
    """Switches between bundles with all pages evicted, and returns of a bundle that sleeps, beside what they read.

    A first answer is that of an engine that was just opened, whose pages are there. ``bundle`` is the place of the one
    that is switched or returned to.
    """
    ours = Ours(bundles, budget, rate)
    with closing(ours):
        asked = [
            Request(name, task, kind_of(bundle), 1)
            for name, bundle in bundles.items()
            for task in list(bundle.tasks)[:2]
        ]
        for request in asked:
            ours.enter(request)
            ours.answer(request)
        for request in asked:
            place = list(bundles).index(request.bundle)
            for other in asked:
                if other.bundle != request.bundle:
                    ours.enter(other)
                    yield {"returns": 0, "bundle": place, **_switch(ours, request, rate)}
            yield {"returns": 1, "bundle": place, **_return(ours, request, bundles[request.bundle], rate)}


def _switch(ours: Ours, request: Request, rate: float) -> Figures:
    ours.models.deactivate()
    ours.models.evict()
    read = ours.read()
    seconds = _timed(ours.enter, request)
    size = ours.read() - read
    return {"seconds": seconds, "bytes": size, "over": seconds * rate / size}


def _return(ours: Ours, request: Request, bundle: Bundle, rate: float) -> Figures:
    ours.models.deactivate()
    ours.models.sleep(request.bundle)
    read = ours.read()
    entered = _timed(ours.enter, request)
    answered = _timed(ours.answer, request)
    size = ours.read() - read
    warm = _timed(ours.answer, request)
    first = first_answer(bundle, request)
    seconds = entered + answered
    return {
        "seconds": seconds, "bytes": size, "entered": entered, "answered": answered, "warm": warm, "first": first,
        "opening": opening_bytes(bundle.path), "over": seconds / (size / rate + first),
        "over_warm": seconds / (size / rate + warm),
    }  # fmt: skip


def first_answer(bundle: Bundle, request: Request) -> float:
    """Seconds of an engine's first answer, whose pages are there."""
    with Engine(bundle, EngineConfig()) as engine:
        engine.activate(request.task)
        return seconds_of(lambda: answer(engine, request.task, request))


def alone(bundles: Mapping[str, Bundle], spec: Spec) -> Figures:
    """One bundle's trace, by `Models` or by `Engine`."""
    ((name, bundle),) = bundles.items()
    requests = trace(bundles, spec.requests, spec.seed)
    with storage(spec.rate):
        if spec.method == "Models":
            with Models.from_pretrained([bundle.path], budget=spec.budget) as models:
                return _alone(models, models.engines[name], requests, lambda request: request.whole_name)
        with Engine(bundle, EngineConfig(spec.budget)) as engine:
            return _alone(engine, engine, requests, lambda request: request.task)


def _alone(
    box: Models | Engine, engine: Engine, requests: Sequence[Request], named: Callable[[Request], str]
) -> Figures:
    waits, answers = list[float](), list[float]()
    for request in requests:
        begun = time.perf_counter()
        box.activate(named(request))
        entered = time.perf_counter()
        answer(box, named(request), request)
        waits.append(entered - begun)
        answers.append(time.perf_counter() - entered)
    held = engine.report().memory.total
    return {**spread_of(waits, answers), "held_bytes": held, "peak_bytes": peak_memory() or 0}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Spec(**json.loads(sys.argv[1])))))
