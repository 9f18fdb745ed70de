"""What a compile has found out before the first block is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from weightpager.answers.score import Score
from weightpager.bundle import DenseScore, EvalData, TaskEntry
from weightpager.bundle.addition import Addition
from weightpager.bundle.format.manifest import Generation
from weightpager.bundle.format.placement import NOTHING_MOVED, Permutations
from weightpager.compiler.data import NEW_TOKENS, TaskData, TransformersTokens
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.resume.shared import Shared
from weightpager.compiler.selection.saliency import FloatArray
from weightpager.compiler.task_file.file import TaskFile
from weightpager.compiler.task_file.sections import AddedSpec, TaskSpec
from weightpager.task_data.held_out import fingerprint

SaliencyOfTasks = dict[str, dict[str, FloatArray]]
"""Task → paged weight → saliency of its blocks, row-major."""


@dataclass(frozen=True)
class Trained:
    """The dense model, trained and measured.

    Attributes:
        dense: the model's score, by task.
        shared: what other compiles have found out about it.
        may_reorder: whether the model may be reordered, which a base bundle forbids.
        calibration_bytes: bytes that the sums of one task's calibration may take while they grow; None for all.
        added: tasks that take others' blocks.
    """

    source: DenseModel
    data: Mapping[str, TaskData]
    dense: Mapping[str, Score]
    shared: Shared
    may_reorder: bool = True
    calibration_bytes: int | None = None
    added: Sequence[Addition] = ()


@dataclass(frozen=True)
class Prepared:
    """All that doesn't depend on the alignment: one preparation serves several builds.

    Attributes:
        source: the trained dense model, reordered.
        data: of the tasks that have any.
        dense: the dense model's score, by task.
        saliency: the saliency of blocks, row-major, by task and paged weight.
        permutations: the order of axes that reordering has chosen.
        evenness: how high the floors of paged weights are; see `floors`.
        added: tasks that take others' blocks.
    """

    source: DenseModel
    data: Mapping[str, TaskData]
    dense: Mapping[str, Score]
    saliency: Mapping[str, Mapping[str, FloatArray]]
    permutations: Permutations = NOTHING_MOVED
    evenness: float = 0.0
    added: Sequence[Addition] = ()

    @property
    def task_file(self) -> TaskFile:
        return self.source.task_file

    def changed(self, **settings: Any) -> Prepared:
        """The same preparation under other settings.

        Only settings that no earlier stage has used may change, such as sparsity, alignment and dtype.
        """
        if unknown := sorted(settings.keys() - TaskFile.model_fields.keys()):
            raise TypeError(f"expected settings of a task file, found {', '.join(unknown)}")
        task_file = self.task_file.model_copy(update=settings)
        return replace(self, source=replace(self.source, task_file=task_file))

    def entries(self) -> tuple[TaskEntry, ...]:
        """The tasks as the manifest lists them."""
        task_file = self.task_file
        return tuple(
            TaskEntry(
                name=name,
                kind=spec.kind,
                classes=list(self.source.classes(name)),
                max_length=None if spec.takes_images else task_file.max_length_of(name),
                sparsity=self.source.sparsity_of(name),
                dense=_entry(self.dense[name]) if name in self.dense else None,
                eval=eval_data(name, spec, among_words=self.source.pictures is not None),
                generation=generation_of(self.source, self.data, name),
                add_bos_token=not spec.labelled and bool(TransformersTokens(self.source.tokenizer).begin_ids),
            )
            for name, spec in task_file.tasks.items()
        )


def generation_of(source: DenseModel, data: Mapping[str, TaskData], name: str) -> Generation | None:
    """How a task's answers are made: as those of its data, or of conversations if the model has a template."""
    spec = source.task_file.tasks[name]
    if name in data:
        asked = data[name].asked
        return None if asked is None else asked.generation
    return Generation(
        prompts="plain" if source.tokenizer.chat_template is None else "chat",
        max_new_tokens=spec.max_new_tokens or NEW_TOKENS,
        metrics=list(spec.wanted_metrics),
        system=spec.system,
    )


def eval_data(name: str, spec: TaskSpec | AddedSpec, *, among_words: bool) -> EvalData | None:
    """A task's held-out data as a bundle names it; None where it has none."""
    if spec.eval is None:
        return None
    return EvalData(
        file=str(spec.eval.absolute()),
        blake3=fingerprint(spec.eval, f"tasks.{name}.eval", spec.kind, spec.columns, among_words=among_words),
        text=spec.columns[0],
        label=spec.columns[1],
        items=spec.items,
    )


def _entry(score: Score) -> DenseScore:
    return DenseScore(metric=score.metric, value=score.value, items=score.items)
