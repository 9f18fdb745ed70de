"""How well each predictor foresees the next task, on every trace: in bits per switch and in hits.

python -m benchmarks.prediction
python -m benchmarks.prediction variants
python -m benchmarks.prediction speed
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import typer

from weightpager.runtime.prediction.markov import MEMORIES, ContextCounts, MarkovPredictor
from weightpager.runtime.prediction.planner import CallablePredictor
from weightpager.runtime.prediction.predictor import PredictionScore, TransitionPredictor
from weightpager.transitions import Transitions
from weightpager_lab.timing import spread
from weightpager_lab.traces import TRACES, Trace

Floats = npt.NDArray[np.float64]


class FrequencyPredictor(MarkovPredictor):
    """Order 0: the next task by how often each one runs, whatever came before."""

    def __init__(self, tasks: int, prior: npt.ArrayLike | None = None) -> None:
        super().__init__(tasks, prior, order=0)
        self._frequencies = ContextCounts(512.0, 1)

    def _learn(self, past: tuple[int, ...], task: int) -> None:  # noqa: ARG002 - order 0
        self._frequencies.add((), task)

    def _chances(self, past: tuple[int, ...]) -> Floats:
        current = past[0] if past else None
        return self._frequencies.chances((), self._base(current), current)


class FirstOrderPredictor(FrequencyPredictor):
    """Order 1: a transition matrix that is learnt, blended with how often each task runs."""

    def __init__(self, tasks: int, prior: npt.ArrayLike | None = None) -> None:
        super().__init__(tasks, prior)
        self._rows = ContextCounts(200.0, tasks)

    def _learn(self, past: tuple[int, ...], task: int) -> None:
        super()._learn(past, task)
        self._rows.add(past[:1], task)

    def _chances(self, past: tuple[int, ...]) -> Floats:
        lower = self._base(past[0]) if past and self._prior is not None else super()._chances(past)
        return self._rows.chances(past[:1], lower) if past else lower


# How well each predictor foresees the next task, on every trace: in bits per switch and in hits.
#
# python -m benchmarks.prediction
# python -m benchmarks.prediction variants
# python -m benchmarks.prediction speed


PREDICTORS: dict[str, Callable[[int], TransitionPredictor]] = {
    "frequency": FrequencyPredictor,
    "first order": FirstOrderPredictor,
    "Markov": MarkovPredictor,
}
VARIANTS: dict[str, Callable[[int], TransitionPredictor]] = {
    "as it is": MarkovPredictor,
    "order 1": lambda tasks: MarkovPredictor(tasks, order=1),
    "order 2": lambda tasks: MarkovPredictor(tasks, order=2),
    "order 5": lambda tasks: MarkovPredictor(tasks, order=5),
    "long memory": lambda tasks: MarkovPredictor(tasks, memories=MEMORIES[:1]),
    "short memory": lambda tasks: MarkovPredictor(tasks, memories=MEMORIES[1:]),
    "three memories": lambda tasks: MarkovPredictor(tasks, memories=(1000.0, 50.0, 5.0)),
}

app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def main(context: typer.Context, switches: int = 5000, seed: int = 0) -> None:
    """Print a table: log loss in bits and hits, of forecasts made when a visit begins, from the first visit on."""
    if context.invoked_subcommand is not None:
        return
    names = [*PREDICTORS, "planner"]
    typer.echo("trace       visits  entropy  H(next|now) " + "".join(f"{name:>16}" for name in names))
    for name, make in TRACES.items():
        trace = make(switches, 1.0, seed)
        predictors = {name: predictor(len(trace.tasks)) for name, predictor in PREDICTORS.items()}
        scores = {name: score(predictor, trace) for name, predictor in predictors.items()}
        if trace.planner is not None:
            fallback = MarkovPredictor(len(trace.tasks))
            scores["planner"] = score(CallablePredictor(trace.planner, trace.tasks, fallback), trace)
        entropy = "       –" if trace.entropy is None else f"{trace.entropy:8.2f}"
        cells = [cell(scores.get(name)) for name in names]
        typer.echo(f"{name:12}{len(trace.visits):6} {entropy}     {trace.first_order_entropy:8.2f} {''.join(cells)}")


@app.command()
def variants(switches: int = 5000, seed: int = 0) -> None:
    """Print the log loss of Markov predictors: with other orders and memories; in the second half alone; at first.

    A prior is the transition matrix of another trace of the same kind; there is but one trace of mail.
    """
    traces = [make(switches, 1.0, seed) for make in TRACES.values()]
    typer.echo(f"{'':22}" + "".join(f"{trace.name:>13}" for trace in traces))
    for name, make in VARIANTS.items():
        losses = [score(make(len(trace.tasks)), trace).log_loss for trace in traces]
        typer.echo(f"{name:22}" + "".join(f"{loss:13.3f}" for loss in losses))
    halves = [score(MarkovPredictor(len(trace.tasks)), trace, skip=len(trace.visits) // 2) for trace in traces]
    typer.echo(f"{'its second half':22}" + "".join(f"{found.log_loss:13.3f}" for found in halves))
    priors = [other_day(trace.name, seed + 1) for trace in traces]
    for length in (100, 300):
        firsts = [replace(trace, visits=trace.visits[: length + 1]) for trace in traces]
        for label, known in ((f"first {length}", [None] * len(priors)), (f"first {length}, prior", priors)):
            begun = [MarkovPredictor(len(trace.tasks), prior) for trace, prior in zip(firsts, known, strict=True)]
            losses = [score(predictor, trace).log_loss for predictor, trace in zip(begun, firsts, strict=True)]
            typer.echo(f"{label:22}" + "".join(f"{loss:13.3f}" for loss in losses))


@app.command()
def speed(tasks: int = 64, switches: int = 5000) -> None:
    """Print the processor time of each predictor, where any task may follow: median and 99th percentile."""
    sequence = np.random.default_rng(0).integers(0, tasks, switches)
    for name, make in PREDICTORS.items():
        predictor, learning, telling = make(tasks), [], []
        for step, task in enumerate(sequence.tolist()):
            start = time.thread_time()
            predictor.observe(task, float(step))
            learnt = time.thread_time()
            predictor.forecast(step + 0.5)
            learning.append(learnt - start)
            telling.append(time.thread_time() - learnt)
        found = [spread(part) or {} for part in (learning, telling)]
        times = [1e6 * of[key] for of in found for key in ("p50", "p99")]
        typer.echo("{:12} observe {:6.0f} {:6.0f} µs   forecast {:6.0f} {:6.0f} µs".format(name, *times))


def score(predictor: TransitionPredictor, trace: Trace, *, skip: int = 0) -> PredictionScore:
    """Of what the predictor says at the start of every visit but the last, while it learns.

    Args:
        predictor: a new one.
        trace: what it sees.
        skip: visits that it is not asked about.
    """
    number = {task: index for index, task in enumerate(trace.tasks)}
    found = PredictionScore()
    for step, visit in enumerate(trace.visits):
        if step > skip:
            found.add(predictor.forecast(trace.visits[step - 1].start), number[visit.task])
        predictor.observe(number[visit.task], visit.start)
    return found


def other_day(name: str, seed: int) -> npt.NDArray[np.float64] | None:
    """The transition matrix of a trace of 5,000 switches; None where all days are the same one."""
    if name == "mail":
        return None
    trace = TRACES[name](5000, 1.0, seed)
    return Transitions.from_trace(trace.tasks, [visit.task for visit in trace.visits]).matrix


def cell(found: PredictionScore | None) -> str:
    return f"{'–':>16}" if found is None else f"{found.log_loss:9.2f} {found.hit_rate:6.0%}"


if __name__ == "__main__":
    app()
