"""One dense model and everything that is compared on it: the bench behind ``benchmarks.accuracy``."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from msgspec import structs

from weightpager.answers.score import Score
from weightpager.bundle import Bundle, writing
from weightpager.compiler.calibration import calibrate_tasks
from weightpager.compiler.controls import Quantisation
from weightpager.compiler.measure import torch_score
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.pipeline import Sparse, assemble
from weightpager.compiler.prepare import train_and_measure_dense
from weightpager.compiler.recovery.finetune import Lesson, finetune
from weightpager.compiler.recovery.recover import recover
from weightpager.compiler.recovery.rounding import is_coarse
from weightpager.compiler.resume.cache import Cache
from weightpager.compiler.resume.identities import compile_identity
from weightpager.compiler.resume.journal import CompileRun, Journal
from weightpager.compiler.selection.block_choice import choose_blocks
from weightpager.compiler.selection.prepared import Prepared
from weightpager.compiler.task_file.file import TaskFile
from weightpager.compiler.task_file.sections import RecoverSpec, TowerBlocks, VisionSpec
from weightpager.compiler.training.evaluate import evaluate
from weightpager.compiler.training.masks import Masks
from weightpager.page_dtype import PageDtype, block_bytes
from weightpager.progress import Progress
from weightpager.store import StorageModel
from weightpager.store.read_plan import all_switches
from weightpager.task_data.held_out import Item


@dataclass(frozen=True)
class Setting:
    """How a sparse method is compiled.

    Attributes:
        method: its name in the rows.
        fraction: of the dense bytes that is resident.
        density: share of the blocks that a task keeps.
        alignment: λ.
        recover: how accuracy is won back.
        dtype: of the pages.
        vision: whose blocks a picture tower has, where there is one.
    """

    method: str
    fraction: float
    density: float
    alignment: float
    recover: RecoverSpec
    dtype: PageDtype = "bfloat16"
    vision: TowerBlocks = "shared"

    @property
    def joint(self) -> str:
        """Names the joint training, which settings that differ only afterwards share."""
        spec = self.recover
        parts: list[object] = [self.density, self.alignment, spec.steps, spec.learning_rate, spec.distillation]
        parts += [spec.seed, *[spec.start] * (spec.start != "dense"), *[self.dtype] * is_coarse(self.dtype)]
        parts += [f"{self.vision}-tower"] * (self.vision != "shared")
        return "-".join(map(str, parts))

    @property
    def bundle_name(self) -> str:
        """Of its bundle, where bundles are kept."""
        return f"{self.method}-{self.fraction}-{self.recover.method}.bundle"

    @property
    def ordered_for(self) -> float:
        """The density that the model is reordered for."""
        return round(self.density, 4) if is_coarse(self.dtype) else self.fraction


@dataclass(frozen=True)
class Outcome:
    """What a method reached.

    Attributes:
        scores: task → metric.
        fraction: bytes of the largest task's kept blocks, as a share of the dense paged weights in bfloat16.
        overlap: mean over ordered pairs of tasks.
        switch_bytes: task → mean bytes to load when it is switched to.
        seconds: from the dense model to the bundle.
    """

    scores: Mapping[str, float]
    fraction: float
    overlap: float
    switch_bytes: Mapping[str, int]
    seconds: float


class Study:
    """A dense model of some tasks, and what is made of it.

    Trainings are journalled in ``folder``, so that a stopped run goes on where it was. The dense model, its scores and
    its calibration are in the user's cache. Bundles are kept in ``bundles``, if that isn't None.
    """

    def __init__(self, task_file: TaskFile, folder: Path, progress: Progress, bundles: Path | None = None) -> None:
        self._folder = folder
        self._bundles = bundles
        self._identity = compile_identity(task_file)
        self._progress = progress
        self._base = train_and_measure_dense(
            task_file, CompileRun(progress, self._journal("base")), cache=Cache.of_user()
        )
        self._prepared: tuple[tuple[float, TowerBlocks], Prepared] | None = None

    def prepared(self, fraction: float, vision: TowerBlocks = "shared") -> Prepared:
        """The dense model, reordered for masks of this density."""
        if self._prepared is None or self._prepared[0] != (fraction, vision):
            run = CompileRun(self._progress, self._journal(f"calibrated-{fraction}-{vision}"))
            found = calibrate_tasks(replace(self._base, source=self._source(fraction, vision)), run)
            self._prepared = (fraction, vision), found
        return self._prepared[1]

    def _source(self, fraction: float, vision: TowerBlocks) -> DenseModel:
        base = self._base.source
        pictures = base.pictures and structs.replace(base.pictures, blocks=vision)
        stated = {"sparsity": 1 - fraction, "vision": VisionSpec(blocks=vision)}
        task_file = base.task_file.model_copy(update=stated)
        return replace(base, task_file=task_file, models=copy.deepcopy(base.models), pictures=pictures)

    def base_scores(self) -> dict[str, float]:
        """Task → metric on held-out data of the dense model that sparse ones start from."""
        return {name: score.value for name, score in self._base.dense.items()}

    def dense(self, spec: RecoverSpec | None) -> dict[str, float]:
        """The dense model that does better on validation data: as sparse ones start from it, or trained on.

        Without a way to train it on, it is the former.
        """
        if spec is None:
            self._dense = self._base.source
            return self.base_scores()
        candidates = {"base": self._base.source, _dense_name(spec): self.trained_on(spec)}
        kept = {name: self._kept(name, partial(self._mean_on_validation, of)) for name, of in candidates.items()}
        chosen = max(kept, key=lambda name: kept[name]["mean"])
        self._dense = candidates[chosen]
        found = self._kept(f"{chosen}-held-out", lambda: self.scores(self._dense))
        return {task: found[task] for task in self._base.data}  # a journal has an order of its own

    def trained_on(self, spec: RecoverSpec) -> DenseModel:
        """The dense model trained for as many steps more as the sparse ones get, without a teacher."""
        alone = self._lesson_of_all_blocks(spec.model_copy(update={"distillation": 0.0}))
        finetune(alone, self._journal(_dense_name(spec)), partial(self._progress, "train dense on"))
        return alone.sparse

    def quantised(self, quantisation: Quantisation) -> Outcome:
        """The dense model that `dense` chose, its paged weights quantised: one for all tasks, nothing to switch."""
        source = replace(self._dense, models=copy.deepcopy(self._dense.models))
        return self._quantised(quantisation, source, time.perf_counter())

    def trained_through(self, quantisation: Quantisation, spec: RecoverSpec) -> Outcome:
        """The same with all blocks trained through the rounding, for as many steps as the sparse ones get."""
        start, lesson = time.perf_counter(), self._lesson_of_all_blocks(spec)
        journal = self._journal(f"int{quantisation.bits}-{_dense_name(spec)}")
        told = partial(self._progress, f"train dense in int{quantisation.bits}")
        finetune(lesson, journal, told, quantisation.encoding)
        return self._quantised(quantisation, lesson.sparse, start)

    def _lesson_of_all_blocks(self, spec: RecoverSpec) -> Lesson:
        source = self._base.source
        everything = {info.name: np.ones((info.grid.count, len(source.models)), bool) for info in source.paged}
        copied = replace(source, models=copy.deepcopy(source.models))
        return Lesson(source, copied, Masks(tuple(source.models), everything), self._base.data, spec)

    def _quantised(self, quantisation: Quantisation, source: DenseModel, start: float) -> Outcome:
        first = next(iter(source.models))
        total = sum(info.grid.out_features * info.grid.in_features for info in source.paged)
        with torch.no_grad():
            for info in source.paged:
                weight = source.linear(first, info.name).weight
                weight.copy_(quantisation.apply(weight).bfloat16())
        seconds = time.perf_counter() - start
        size = sum(
            info.grid.out_features * info.grid.in_features * quantisation.fraction(info.grid.in_features)
            for info in source.paged
        )
        return Outcome(self.scores(source), size / total, 1.0, dict.fromkeys(source.models, 0), seconds)

    def sparse(self, setting: Setting) -> Outcome:
        """A bundle compiled by this setting, measured through the engine."""
        prepared = self.prepared(setting.ordered_for, setting.vision).changed(
            sparsity=1 - setting.density, alignment=setting.alignment, recover=setting.recover, dtype=setting.dtype
        )
        run = CompileRun(self._told(setting), self._journal(f"{setting.fraction}-{setting.joint}"))
        with run.stage("align"):
            chosen = choose_blocks(prepared)
        with run.stage("recover"):
            weights = recover(prepared.source, prepared.data, chosen.masks, run.journal, run.progress)
        with tempfile.TemporaryDirectory() as folder:
            kept = self._bundles or Path(folder)
            kept.mkdir(parents=True, exist_ok=True)
            path = kept / setting.bundle_name
            with writing(path, force=True) as writer:
                report = assemble(writer, prepared, Sparse(chosen.masks, weights, chosen.gap), run)
            bundle = Bundle.open(path)
            per_switch = switch_bytes(bundle)  # reads files
        task_file = prepared.task_file
        scale = block_bytes(task_file.block, task_file.dtype) / block_bytes(task_file.block, "bfloat16")
        return Outcome(
            {task.name: task.sparse for task in report.tasks},
            max(task.density for task in report.tasks) * scale,
            report.mean_overlap,
            per_switch,
            sum(seconds for stage, seconds in run.seconds.items() if stage != "measure sparse"),
        )

    def scores(self, source: DenseModel) -> dict[str, float]:
        """Task → metric of a dense model on held-out data."""
        return {name: self._measure(source, name, self._base.data[name].eval).value for name in self._base.data}

    def _kept(self, name: str, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        """What is measured by ``measure``, unless an earlier run has kept it."""
        journal = self._journal(f"{name}-scores")
        reached = journal.read("scores")
        if reached is not None:
            return {key: value.item() for key, value in reached.tensors.items()}
        found = measure()
        journal.write("scores", 0, {key: torch.tensor(value, dtype=torch.float64) for key, value in found.items()})
        return found

    def _mean_on_validation(self, source: DenseModel) -> dict[str, float]:
        """Mean metric; of perplexities, the mean of their logarithms, and less is more."""
        found = [self._measure(source, name, data.validation or ()) for name, data in self._base.data.items()]
        values = [score.value if score.higher_is_better else -np.log(score.value) for score in found]
        return {"mean": float(np.mean(values))}

    def _measure(self, source: DenseModel, task: str, examples: Sequence[Item]) -> Score:
        data = replace(self._base.data[task], eval=tuple(examples))
        model, told = source.models[task], partial(self._progress, f"measure {task}")
        if data.asked is not None:  # writing takes minutes: as a compile measures it
            return torch_score(model, data, source.task_file.dtype, told)
        return evaluate(model, data.held_out(), data.kind, told)

    def _journal(self, name: str) -> Journal:
        return Journal(self._folder / name, f"{self._identity} {name}")

    def _told(self, setting: Setting) -> Progress:
        return lambda stage, done, total: self._progress(f"{setting.method}: {stage}", done, total)


def _dense_name(spec: RecoverSpec) -> str:
    return f"dense-{spec.steps}-{spec.learning_rate}-{spec.seed}"


def switch_bytes(bundle: Bundle) -> dict[str, int]:
    """Mean bytes to load for a switch to each task, over the tasks that it can come from."""
    switches = all_switches(bundle, StorageModel())
    return {
        task: round(float(np.mean([switch.bytes for switch in switches if switch.to_task == task] or [0])))
        for task in bundle.tasks
    }
