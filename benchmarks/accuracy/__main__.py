"""Accuracy per resident byte: ours against the controls that could defeat it, at equal bytes of paged weights.

Rows are added to the JSON file as they are measured; a run that was stopped goes on where it was.

    python -m benchmarks.accuracy --domain A --quick --json accuracy.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from benchmarks import row_file
from benchmarks.accuracy import rows as table
from benchmarks.accuracy.rows import Row
from benchmarks.accuracy.settings import (
    FRACTIONS,
    INT4_FRACTIONS,
    METHODS,
    SEEDS,
    TRAINED_THROUGH,
    WRITING,
    Effort,
    effort_of,
    settings,
)
from benchmarks.accuracy.study import Outcome, Setting, Study
from weightpager.cli.progress import progress
from weightpager.compiler.controls import QUANTISATIONS
from weightpager.compiler.task_file.file import TaskFile, from_dict
from weightpager.compiler.task_file.sections import RecoverMethod
from weightpager.config import cache_dir
from weightpager.progress import Progress
from weightpager_lab.samples import language_modeling, minilm, smollm2
from weightpager_lab.samples import prepare as text_tasks
from weightpager_lab.samples.driving_questions import driving_questions
from weightpager_lab.samples.narrow_tasks import METRICS, text_generation
from weightpager_lab.samples.road_llava import road_llava
from weightpager_lab.samples.sample import Missing

Domain = Literal["A", "B", "D", "E"]


def main(
    json: Annotated[Path, typer.Option(help="File of rows; those that it has are not measured again.")],
    domain: Annotated[
        Domain,
        typer.Option(
            help="A: six text tasks; B: four language models; D: six tasks that write; E: seven questions about roads."
        ),
    ] = "A",
    quick: Annotated[bool, typer.Option(help="One seed at a quarter of the bytes, in under twelve minutes.")] = False,
    fraction: Annotated[list[float] | None, typer.Option(help="Only these fractions of the dense bytes.")] = None,
    seed: Annotated[int | None, typer.Option(help="Only this seed.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only these methods.")] = None,
    recover: Annotated[RecoverMethod | None, typer.Option(help="Only values that were won back like this.")] = None,
    bundles: Annotated[Path | None, typer.Option(help="Folder to keep the bundles in.")] = None,
) -> None:
    """Measure accuracy per resident byte."""
    command = row_file.command("benchmarks.accuracy")
    every = (*QUANTISATIONS, *METHODS)
    if unknown := set(method or ()) - set(every):
        raise typer.BadParameter(f"expected {', '.join(every)}; found {', '.join(sorted(unknown))}")
    effort = effort_of(domain, quick=quick)
    quickly = FRACTIONS[domain][:1]
    fractions = tuple(fraction or (quickly if quick else dict.fromkeys(FRACTIONS[domain] + INT4_FRACTIONS[domain])))
    for number, todo in _of_each_seed(domain, fractions, seed, quick=quick).items():
        chosen = [
            setting
            for at in todo
            for setting in settings(domain, at, effort, number, quick=quick)
            if (not method or setting.method in method) and recover in (None, setting.recover.method)
        ]
        with progress() as told:
            study = study_of(domain, number, told, bundles, quick=quick)
            trained = TRAINED_THROUGH if domain == "A" and number == 0 and not quick else {}
            dense = [name for name in (*QUANTISATIONS, *trained) if not method or name in method]
            _run(study, domain, number, dense, chosen, effort, json, command)


def _of_each_seed(
    domain: Domain, fractions: tuple[float, ...], only: int | None, *, quick: bool
) -> dict[int, list[float]]:
    """Seed → the fractions that are measured with it."""
    seeds = {at: (0,) if quick else SEEDS[domain].get(at, (0,)) for at in fractions}
    numbers = sorted({number for of in seeds.values() for number in of if only in (None, number)})
    if not numbers:
        measured = ", ".join(f"{at} with {', '.join(map(str, of))}" for at, of in seeds.items())
        raise typer.BadParameter(f"--seed: expected one of these fractions ({measured}); got {only}")
    return {number: [at for at, of in seeds.items() if number in of] for number in numbers}


def _run(
    study: Study, domain: Domain, seed: int, quantised: list[str], chosen: list[Setting], effort: Effort, file: Path,
    command: str,
) -> None:  # fmt: skip
    dense = study.dense(effort.dense(seed))
    facts: dict[str, Any] = {"domain": domain, "seed": seed, "command": command, "commit": row_file.commit()}

    def note(setting: Setting | None, name: str, fraction: float, outcome: Outcome) -> None:
        recover = setting.recover.method if setting else "finetune" if name in TRAINED_THROUGH else "none"
        sparsity = 0.0 if setting is None else 1 - setting.density
        rows = _rows(outcome, dense, fraction, sparsity, name, recover, facts)
        table.add(file, rows)
        typer.echo(_line(rows[-1]))

    rows = [row for row in table.read(file) if row.domain == domain and row.seed == seed]
    known = {(row.method, row.recover, row.resident_fraction) for row in rows}
    for name in quantised:
        if any(key[0] == name for key in known):
            continue
        if name in TRAINED_THROUGH:
            outcome = study.trained_through(QUANTISATIONS[TRAINED_THROUGH[name]], effort.finetune(seed))
        else:
            outcome = study.quantised(QUANTISATIONS[name])
        note(None, name, round(outcome.fraction, 3), outcome)
    for setting in chosen:
        if (setting.method, setting.recover.method, setting.fraction) not in known:
            note(setting, setting.method, setting.fraction, study.sparse(setting))


def study_of(domain: Domain, seed: int, told: Progress, bundles: Path | None, *, quick: bool) -> Study:
    """A domain's dense model for a seed, and what is made of it; bundles are kept in their folder of ``bundles``."""
    effort = effort_of(domain, quick=quick)
    folder = cache_dir() / "benchmarks" / f"accuracy-{domain}-{seed}-{'quick' if quick else 'full'}"
    kept = None if bundles is None else kept_in(bundles, domain, seed)
    return Study(task_file(domain, effort, seed), folder, told, kept)


def kept_in(bundles: Path, domain: Domain, seed: int) -> Path:
    """Where the bundles of a domain and a seed are kept."""
    return bundles / f"{domain}-{seed}"


def task_file(domain: Domain, effort: Effort, seed: int) -> TaskFile:
    """The tasks of a domain; their samples are made if need be.

    A seed draws what is trained on, or calibration texts where the dense model is given.
    """
    cache = cache_dir()
    trained, drawn = (0, seed) if effort.dense(seed) is None else (seed, 0)
    tasks, missing = _tasks(domain, effort, cache)
    if missing:
        raise SystemExit(f"tasks cannot be had: {', '.join(f'{task.name} ({task.reason})' for task in missing)}")
    return from_dict(
        {
            "model": str(_model(domain, cache)),
            "training": {
                "steps": effort.base_steps,
                "learning_rate": effort.base_learning_rate,
                "batch": effort.batch,
                "seed": trained,
            },
            "calibration": {"max_length": effort.max_length, "items": effort.calibration_items, "seed": drawn},
            "tasks": tasks,
        }
    )


def _model(domain: Domain, cache: Path) -> Path:
    if domain == "E":
        return road_llava(cache, driving_questions(cache, report=typer.echo), report=typer.echo)
    return minilm(cache) if domain == "A" else smollm2(cache)


def _tasks(domain: Domain, effort: Effort, cache: Path) -> tuple[dict[str, dict[str, Any]], list[Missing]]:
    """Entries of a task file, and what cannot be had."""
    train, measured = effort.train_items, effort.eval_items
    if domain == "A":
        samples, missing = text_tasks(cache, train_items=train, eval_items=measured, report=typer.echo)
    elif domain == "B":
        samples, missing = language_modeling(cache, train_chars=train, eval_chars=measured, report=typer.echo)
    elif domain == "E":
        stated = {"items": measured, "max_new_tokens": 8}
        return {each.name: {**each.entry(), **stated} for each in driving_questions(cache, report=typer.echo)}, []
    else:
        samples, missing = text_generation(cache, train_items=train, eval_items=measured, report=typer.echo)
    metrics = {name: {"metrics": list(of_task)} for name, of_task in METRICS.items()} if domain == "D" else {}
    return {sample.name: {**sample.entry(), **metrics.get(sample.name, {})} for sample in samples}, missing


def _rows(
    outcome: Outcome, dense: dict[str, float], fraction: float, sparsity: float, method: str, recover: str,
    facts: dict[str, Any],
) -> list[Row]:  # fmt: skip
    def row(task: str, was: float, value: float, size: int) -> Row:
        return Row(
            resident_fraction=fraction, sparsity=round(sparsity, 4), method=method, recover=recover, task=task,
            dense=round(was, 4), value=round(value, 4), overlap=round(outcome.overlap, 4), bytes_per_switch=size,
            compile_seconds=round(outcome.seconds, 1), **facts,
        )  # fmt: skip

    tasks = list(dense)
    each = [row(task, dense[task], outcome.scores[task], outcome.switch_bytes[task]) for task in tasks]
    loaded = round(sum(outcome.switch_bytes.values()) / len(tasks))
    if facts["domain"] in WRITING:  # metrics of several kinds: each as a share of the dense model's
        return [*each, row("mean", 1.0, sum(outcome.scores[task] / dense[task] for task in tasks) / len(tasks), loaded)]
    mean = sum(dense.values()) / len(tasks), sum(outcome.scores.values()) / len(tasks)
    return [*each, row("mean", *mean, loaded)]


def _line(row: Row) -> str:
    return (
        f"{row.domain} seed {row.seed}  a={row.resident_fraction:<5} {row.method:<20} {row.recover:<12} "
        f"{row.value:.4f} (dense {row.dense:.4f})  overlap {row.overlap:.3f}  {row.bytes_per_switch} bytes per switch"
    )


if __name__ == "__main__":
    typer.run(main)
