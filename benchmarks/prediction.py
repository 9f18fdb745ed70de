"""How well each predictor foresees the next task, on every trace: in bits per switch and in hits.

python -m benchmarks.prediction
"""

from __future__ import annotations

from collections.abc import Callable

import typer

from weightpager.runtime.callable_predictor import CallablePredictor
from weightpager.runtime.first_order_predictor import FirstOrderPredictor
from weightpager.runtime.frequency_predictor import FrequencyPredictor
from weightpager.runtime.markov_predictor import MarkovPredictor
from weightpager.runtime.prediction_score import PredictionScore
from weightpager.runtime.transition_predictor import TransitionPredictor
from weightpager.traces import TRACES, Trace

PREDICTORS: dict[str, Callable[[int], TransitionPredictor]] = {
    "frequency": FrequencyPredictor,
    "first order": FirstOrderPredictor,
    "Markov": MarkovPredictor,
}


def main(switches: int = 5000, seed: int = 0) -> None:
    """Print a table: log loss in bits and hits, of forecasts made when a visit begins, from the first visit on."""
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


def score(predictor: TransitionPredictor, trace: Trace) -> PredictionScore:
    """Of what the predictor says at the start of every visit but the last, while it learns."""
    number = {task: index for index, task in enumerate(trace.tasks)}
    found = PredictionScore()
    for step, visit in enumerate(trace.visits):
        if step:
            found.add(predictor.forecast(trace.visits[step - 1].start), number[visit.task])
        predictor.observe(number[visit.task], visit.start)
    return found


def cell(found: PredictionScore | None) -> str:
    """Bits and hits."""
    return f"{'–':>16}" if found is None else f"{found.log_loss:9.2f} {found.hit_rate:6.0%}"


if __name__ == "__main__":
    typer.run(main)
