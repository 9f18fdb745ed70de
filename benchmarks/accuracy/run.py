"""Accuracy per resident byte: ours against the controls that could defeat it, at equal bytes of paged weights.

Rows are added to the JSON file as they are measured; a run that was stopped goes on where it was.

    python -m benchmarks.accuracy --domain A --quick --json accuracy.json
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from benchmarks import provenance
from benchmarks.accuracy import rows as table
from benchmarks.accuracy.rows import Row
from benchmarks.accuracy.study import Outcome, Setting, Study
from weightpager.blocks import BlockShape
from weightpager.cli.progress import progress
from weightpager.compiler.measuring.quantise import QUANTISATIONS
from weightpager.compiler.task_file.fields import RecoverMethod, RecoverStart
from weightpager.compiler.task_file.file import TaskFile, from_dict
from weightpager.compiler.task_file.sections import RecoverSpec
from weightpager.config import cache_dir
from weightpager.lab.samples import language_modeling, minilm, smollm2
from weightpager.lab.samples import prepare as text_tasks
from weightpager.page_dtype import block_bytes

_BLOCK = BlockShape(16, 32)
BYTES = {dtype: block_bytes(_BLOCK, dtype) / block_bytes(_BLOCK, "bfloat16") for dtype in ("int8", "int4")}
"""Of a block with its scales, as a share of the same one in bfloat16."""

METHODS = (
    "ours", "ours_private", "ours_int8", "ours_int4", "ours_private_int4", "unaligned",
    "shared_mask", "shared_mask_int8", "shared_mask_int4", "per_task_checkpoint",
)  # fmt: skip

FRACTIONS = {"A": (0.25, 0.15, 0.5, 0.1, 0.7), "B": (0.7, 0.5)}
INT4_FRACTIONS = {"A": (0.07, 0.14, 0.035, 0.1, 0.21), "B": ()}
"""Where four bits are measured: a quarter of the blocks first, then half, an eighth, a third, three quarters."""

SEEDS = {0.25: (0, 1, 2), 0.15: (0, 1, 2), 0.07: (0, 1, 2), 0.14: (0, 1, 2)}
ALIGNMENT = 0.5
"""λ, chosen on validation data."""

LOOSE_ALIGNMENT = {0.7: 2.0}
"""λ where most blocks are kept, chosen on validation data."""

LOOSE = 0.6
"""The density above which λ is that."""

FEW = 0.15
"""The density up to which a tenth of a task's blocks is made private; a twentieth above it."""

_HEADS = 5e-4
"""Learning rate of heads that the dense model has trained already."""

TRAINING_FREE = 0.5
"""The least fraction at which values are worth having without training."""


@dataclass(frozen=True)
class Effort:
    """How much is trained and measured; chosen on validation data, before its held-out results were seen.

    Attributes:
        train_items: texts to learn from, per task; characters in domain B.
        eval_items: at most so many to be measured on, in the same unit.
        start: where sparse values set out from.
    """

    base_steps: int
    base_learning_rate: float
    steps: int
    private_steps: int
    batch: int
    learning_rate: float
    dense_learning_rate: float
    distillation: float
    max_length: int
    train_items: int
    eval_items: int
    start: RecoverStart

    def finetune(self, seed: int, private_blocks: float = 0.0) -> RecoverSpec:
        """How sparse values are trained; all steps are made."""
        return RecoverSpec(
            method="finetune",
            start=self.start,
            steps=self.steps,
            private_steps=self.private_steps,
            private_blocks=private_blocks,
            batch=self.batch,
            learning_rate=self.learning_rate,
            head_learning_rate=_HEADS,
            distillation=self.distillation,
            seed=seed,
            patience=0,
        )

    def dense(self, seed: int) -> RecoverSpec:
        """How the dense model is trained on for as many steps, by its own learning rate."""
        return self.finetune(seed).model_copy(update={"learning_rate": self.dense_learning_rate, "start": "dense"})


EFFORTS = {
    # A teacher must be well trained before its answers help: half of all steps are the dense model's.
    "A": Effort(
        base_steps=960, base_learning_rate=1e-4, steps=960, private_steps=80, batch=16, learning_rate=2e-4,
        dense_learning_rate=5e-5, distillation=0.5, max_length=64, train_items=8000, eval_items=2000,
        start="dense",
    ),
    # A language model brings its head; 480 steps are about twenty minutes on two cores, a measurement half a minute.
    "B": Effort(
        base_steps=1, base_learning_rate=3e-4, steps=480, private_steps=60, batch=4, learning_rate=3e-4,
        dense_learning_rate=1e-4, distillation=0.0, max_length=256, train_items=1_000_000, eval_items=40_000,
        start="closed-form",
    ),
}  # fmt: skip
QUICK = Effort(
    base_steps=480, base_learning_rate=2e-4, steps=160, private_steps=30, batch=16, learning_rate=2e-4,
    dense_learning_rate=1e-4, distillation=0.5, max_length=64, train_items=4000, eval_items=500, start="dense",
)  # fmt: skip


def settings(domain: str, fraction: float, effort: Effort, seed: int, *, quick: bool) -> Iterator[Setting]:
    """The sparse methods at one fraction of resident bytes."""
    if fraction in FRACTIONS[domain] or fraction not in INT4_FRACTIONS[domain]:
        yield from _wide_settings(domain, fraction, effort, seed, quick=quick)
    if fraction in INT4_FRACTIONS[domain]:
        yield from _narrow_settings(fraction, effort, seed, eights=not quick and fraction not in FRACTIONS[domain])


def _narrow_settings(fraction: float, effort: Effort, seed: int, *, eights: bool) -> Iterator[Setting]:
    """Ours and one shared mask in int4, and ours in int8 with the fewer blocks that as many bytes hold of these."""
    shared, density = effort.finetune(seed), fraction / BYTES["int4"]
    chosen = LOOSE_ALIGNMENT[0.7] if density > LOOSE else ALIGNMENT
    yield Setting("ours_int4", fraction, density, chosen, shared, "int4")
    yield Setting("shared_mask_int4", fraction, density, float("inf"), shared, "int4")
    yield Setting("ours_private_int4", fraction, density, chosen, _private(effort, seed, density), "int4")
    if eights:
        yield Setting("ours_int8", fraction, fraction / BYTES["int8"], ALIGNMENT, shared, "int8")


def _private(effort: Effort, seed: int, density: float) -> RecoverSpec:
    return effort.finetune(seed, 0.1 if density <= FEW else 0.05)


def _wide_settings(domain: str, fraction: float, effort: Effort, seed: int, *, quick: bool) -> Iterator[Setting]:
    """In bfloat16; and in int8, with about twice the blocks."""
    chosen = LOOSE_ALIGNMENT.get(fraction, ALIGNMENT)
    if fraction >= TRAINING_FREE:
        yield Setting("ours", fraction, fraction, chosen, RecoverSpec(method="closed-form"))
        for method, alignment in (("ours", chosen), ("unaligned", 0.0), ("shared_mask", float("inf"))):
            yield Setting(method, fraction, fraction, alignment, RecoverSpec(method="none"))
        if fraction > TRAINING_FREE and domain == "A":
            return
    shared, private, whole = effort.finetune(seed), _private(effort, seed, fraction), effort.finetune(seed, 1.0)
    yield Setting("ours", fraction, fraction, chosen, shared)
    yield Setting("shared_mask", fraction, fraction, float("inf"), shared)
    if domain == "B":
        return
    yield Setting("ours_private", fraction, fraction, chosen, private)
    if quick:
        return
    yield Setting("unaligned", fraction, fraction, 0.0, shared)
    yield Setting("per_task_checkpoint", fraction, fraction, 0.0, whole)
    density = min(1.0, fraction / BYTES["int8"])
    yield Setting("ours_int8", fraction, density, chosen, shared, "int8")
    yield Setting("shared_mask_int8", fraction, density, float("inf"), shared, "int8")


def main(
    json: Annotated[Path, typer.Option(help="File of rows; those that it has are not measured again.")],
    domain: Annotated[Literal["A", "B"], typer.Option(help="A: six text tasks; B: four language models.")] = "A",
    quick: Annotated[bool, typer.Option(help="One seed at a quarter of the bytes, in under twelve minutes.")] = False,
    fraction: Annotated[list[float] | None, typer.Option(help="Only these fractions of the dense bytes.")] = None,
    seed: Annotated[int | None, typer.Option(help="Only this seed.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only these sparse methods.")] = None,
    recover: Annotated[RecoverMethod | None, typer.Option(help="Only values that were won back like this.")] = None,
    bundles: Annotated[Path | None, typer.Option(help="Folder to keep the bundles in.")] = None,
) -> None:
    """Measure accuracy per resident byte."""
    command = provenance.command("benchmarks.accuracy")
    if unknown := set(method or ()) - set(METHODS):
        raise typer.BadParameter(f"expected {', '.join(METHODS)}; found {', '.join(sorted(unknown))}")
    effort = QUICK if quick else EFFORTS[domain]
    fractions = tuple(fraction or ((0.25,) if quick else dict.fromkeys(FRACTIONS[domain] + INT4_FRACTIONS[domain])))
    for number in (0, 1, 2):
        todo = [at for at in fractions if number in ((0,) if quick else SEEDS.get(at, (0,)))]
        if todo and seed in (None, number):
            chosen = [
                setting
                for at in todo
                for setting in settings(domain, at, effort, number, quick=quick)
                if (not method or setting.method in method) and recover in (None, setting.recover.method)
            ]
            folder = cache_dir() / "benchmarks" / f"accuracy-{domain}-{number}-{'quick' if quick else 'full'}"
            kept = None if bundles is None else bundles / f"{domain}-{number}"
            with progress() as told:
                study = Study(task_file(domain, effort, number), folder, told, kept)
                _run(study, domain, number, chosen, effort, json, command)


def _run(study: Study, domain: str, seed: int, chosen: list[Setting], effort: Effort, file: Path, command: str) -> None:
    dense = study.dense(effort.dense(seed))
    facts: dict[str, Any] = {"domain": domain, "seed": seed, "command": command, "commit": provenance.commit()}

    def note(setting: Setting | None, name: str, fraction: float, outcome: Outcome) -> None:
        recover = "none" if setting is None else setting.recover.method
        sparsity = 0.0 if setting is None else 1 - setting.density
        rows = _rows(outcome, dense, fraction, sparsity, name, recover, facts)
        table.add(file, rows)
        typer.echo(_line(rows[-1]))

    rows = [row for row in table.read(file) if row.domain == domain and row.seed == seed]
    known = {(row.method, row.recover, row.resident_fraction) for row in rows}
    for name, quantisation in QUANTISATIONS.items():
        if not any(key[0] == name for key in known):
            outcome = study.quantised(quantisation)
            note(None, name, round(outcome.fraction, 3), outcome)
    for setting in chosen:
        if (setting.method, setting.recover.method, setting.fraction) not in known:
            note(setting, setting.method, setting.fraction, study.sparse(setting))


def task_file(domain: str, effort: Effort, seed: int) -> TaskFile:
    """The tasks of a domain; their samples are made if need be."""
    cache = cache_dir()
    samples, missing = (
        text_tasks(cache, train_items=effort.train_items, eval_items=effort.eval_items, report=typer.echo)
        if domain == "A"
        else language_modeling(cache, train_chars=effort.train_items, eval_chars=effort.eval_items, report=typer.echo)
    )
    if missing:
        raise SystemExit(f"tasks cannot be had: {', '.join(f'{task.name} ({task.reason})' for task in missing)}")
    return from_dict(
        {
            "model": str(minilm(cache) if domain == "A" else smollm2(cache)),
            "training": {
                "steps": effort.base_steps,
                "learning_rate": effort.base_learning_rate,
                "batch": effort.batch,
                "seed": seed,
            },
            "calibration": {"max_length": effort.max_length},
            "tasks": {sample.name: sample.entry() for sample in samples},
        }
    )


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
    mean = row(
        "mean",
        sum(dense.values()) / len(tasks),
        sum(outcome.scores.values()) / len(tasks),
        round(sum(outcome.switch_bytes.values()) / len(tasks)),
    )
    return [*each, mean]


def _line(row: Row) -> str:
    return (
        f"{row.domain} seed {row.seed}  a={row.resident_fraction:<5} {row.method:<20} {row.recover:<12} "
        f"{row.value:.4f} (dense {row.dense:.4f})  overlap {row.overlap:.3f}  {row.bytes_per_switch} bytes per switch"
    )
