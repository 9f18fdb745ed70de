"""The sections of a task file: one task, and how models are calibrated, trained and recovered."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from weightpager.bundle.format.manifest import FORMS, TaskKind, TextMetric
from weightpager.bundle.parts.adapter import MOST_RANK
from weightpager.compiler.task_file.fields import (
    Column,
    Count,
    Data,
    Frozen,
    Length,
    ModelDirectory,
    Rate,
    RecoverMethod,
    RecoverStart,
    Sparsity,
    broken,
)

_STEPS = frozenset({"steps", "private_steps"})


class TaskSpec(Frozen):
    """One task.

    Attributes:
        kind: what it does with a text or an image.
        train: what it learns from and is calibrated on.
        eval: held-out data for the reported metric.
        validation: held-out data for choices made while compiling.
        text, label: column names; None is ``tokens`` and ``tags`` where each word has a label, ``prompt`` (or else
            ``messages``) and ``completion`` where texts are generated, else ``text`` and ``label``.
        image: name of the column of image files.
        head: a checkpoint directory of the same architecture that brings the trained head.
        checkpoint: a checkpoint directory of the same architecture: all of the task's weights, head included.
        sparsity, max_length: this task's own.
        items: evaluate on the first ``items`` rows or windows of ``eval`` and ``validation`` only.
        metrics: what generated texts are measured by, the first for all choices; None is ``exact-match``.
        max_new_tokens: of a generated text, at most; None is 64.
    """

    kind: TaskKind
    train: Data
    eval: Data
    validation: Data | None = None
    sparsity: Sparsity | None = None
    text: Column | None = None
    label: Column | None = None
    image: Column | None = None
    head: ModelDirectory | None = None
    checkpoint: ModelDirectory | None = None
    max_length: Length | None = None
    items: Count | None = None
    metrics: Annotated[tuple[TextMetric, ...], Field(min_length=1, max_length=8, strict=False)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1, le=2**20)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> TaskSpec:
        if not self.labelled:
            for key in ("head",) if self.completes else ("label", "head"):
                if getattr(self, key) is not None:
                    raise broken(f"{key} makes no sense for {self.kind}, which has neither labels nor own head")
        for key in () if self.completes else ("metrics", "max_new_tokens"):
            if getattr(self, key) is not None:
                raise broken(f"{key} makes no sense for {self.kind}, which generates no texts to be measured")
        if self.metrics is not None and len(set(self.metrics)) != len(self.metrics):
            raise broken(f"expected metrics that differ, found {', '.join(self.metrics)}")
        for key in ("text", "max_length") if self.takes_images else ("image",):
            if getattr(self, key) is not None:
                raise broken(f"{key} makes no sense for {self.kind}")
        if self.head is not None and self.checkpoint is not None:
            raise broken("head and checkpoint can't both be given: a checkpoint brings its own head")
        for key in ("eval", "validation"):
            path: Path | None = getattr(self, key)
            if path is not None and path.resolve() == self.train.resolve():
                raise broken(f"{key} must be held out: it is the training file {path}")
        return self

    @property
    def labelled(self) -> bool:
        """Whether it has classes, and so a head of its own: all but those that generate texts."""
        return FORMS[self.kind].labels != "none"

    @property
    def completes(self) -> bool:
        """Whether its rows are prompts and completions."""
        return FORMS[self.kind].completes

    @property
    def wanted_metrics(self) -> tuple[TextMetric, ...]:
        """What its generated texts are measured by; empty where it generates none."""
        return (self.metrics or ("exact-match",)) if self.completes else ()

    @property
    def trained(self) -> bool:
        """Whether the dense model has to be trained for it: a head that is new, or completions."""
        return (self.labelled or self.completes) and self.head is None and self.checkpoint is None

    @property
    def takes_images(self) -> bool:
        """Whether it reads images; else it reads texts."""
        return FORMS[self.kind].images

    @property
    def columns(self) -> tuple[str, str]:
        """The column of what the task reads, and that of labels."""
        if self.completes:
            return self.text or "prompt", self.label or "completion"
        words = FORMS[self.kind].labels == "each word"
        read = (self.image or "image") if self.takes_images else self.text or ("tokens" if words else "text")
        return read, self.label or ("tags" if words else "label")


class CalibrationSpec(Frozen):
    """What saliency is measured on.

    Attributes:
        items: training examples of each task.
        max_length: tokens at which texts are cut, in training and evaluation, and by the bundle's tasks in use.
        batch: examples at a time.
    """

    items: Count = 256
    max_length: Length = 64
    batch: Count = 32


class _Training(Frozen):
    """A section that tells how long to train."""

    @property
    def stated_steps(self) -> frozenset[str]:
        """Which numbers of steps the task file states."""
        return _STEPS & self.model_fields_set


class TrainingSpec(_Training):
    """How the dense model is trained, and the heads of tasks that have none.

    Attributes:
        steps: in all, one task after the other; unless they are stated, as many as the data is enough for, 360 at most.
        learning_rate, head_learning_rate: of the shared model, of the heads.
        batch: examples in a step, or all of a task that has fewer.
        seed: the same one, machine and number of threads give the same model.
    """

    steps: Count = 360
    learning_rate: Rate = 3e-4
    head_learning_rate: Rate = 2e-3
    batch: Count = 32
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class RecoverSpec(_Training):
    """How the accuracy that dropped blocks cost is won back.

    Attributes:
        method: ``closed-form`` refits values by least squares, ``finetune`` trains them.
        start: where `finetune` sets out from: the dense values, or those that ``closed-form`` finds.
        steps: of joint training, shared by all tasks; as in ``training``.
        learning_rate, head_learning_rate, batch, seed: as in ``training``.
        distillation: weight of the dense model's answers in the loss; labels have the rest.
        private_blocks: share of a task's kept blocks that get values of their own, loaded at every switch to it.
        private_steps: of training them, per task.
        low_rank: rank of a task's own part that is added to every paged weight; 0 for none.
        patience: checks on the validation data without improvement after which a training ends; 0 makes none.
    """

    method: RecoverMethod = "none"
    start: RecoverStart = "dense"
    steps: Count = 360
    learning_rate: Rate = 3e-4
    head_learning_rate: Rate = 2e-3
    batch: Count = 32
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    distillation: Annotated[float, Field(ge=0, le=1)] = 0.5
    private_blocks: Annotated[float, Field(ge=0, le=1)] = 0.0
    private_steps: Count = 60
    low_rank: Annotated[int, Field(ge=0, le=MOST_RANK)] = 0
    patience: Annotated[int, Field(ge=0, lt=100)] = 4

    @property
    def refits(self) -> bool:
        """Whether values are refitted by least squares, be it as a start."""
        return "closed-form" in (self.method, self.start)

    @property
    def trains_alone(self) -> bool:
        """Whether fine-tuning trains values of each task's own too."""
        return bool(self.private_blocks or self.low_rank)


def _method_alone(value: object) -> object:
    return {"method": value} if isinstance(value, str) else value


class _OrMethodAlone:
    """For editors: a section, or a method."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [handler(core), {"type": "string", "enum": list(get_args(RecoverMethod))}]}


Recover = Annotated[RecoverSpec, BeforeValidator(_method_alone), _OrMethodAlone()]
"""A section, or the name of a method alone."""
