"""The sections of a task file: one task, and how models are calibrated, trained and recovered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError
from typing_extensions import LiteralString

from weightpager.blocks import BlockShape
from weightpager.bundle.format.manifest import FORMS, MOST_RANK, MOST_SYSTEM, TaskKind, TextMetric
from weightpager.bundle.peft import CONFIG, WEIGHTS
from weightpager.config import is_unicode, parse_size
from weightpager.errors import ConfigError, shown
from weightpager.machine.paths import has_directory, has_file

RecoverMethod = Literal["none", "closed-form", "finetune"]
RecoverStart = Literal["dense", "closed-form"]
Comparison = Literal["none", "dense", "all"]
TowerBlocks = Literal["shared", "own"]
Effort = Literal["quick", "normal", "thorough"]

GGUF = ".gguf"
"""The ending of a model that is one file."""

_PAGE_LIMITS = (4096, 2**28)


def broken(rule: str) -> PydanticCustomError:
    """An error whose text is shown as it is."""
    return PydanticCustomError("rule", "{rule}", {"rule": rule})


def _path(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, (str, Path)) or not str(value):
        raise PydanticCustomError("expected", "a path")
    folder: Path = (info.context or {}).get("folder", Path())
    try:
        path = folder / Path(value).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # no such user, a name too long, a NUL
        raise broken(f"expected a path: {error}") from None
    if not is_unicode(str(path)):
        raise broken(f"expected a path of Unicode text without lone surrogates, found {str(path)!r}")
    return path


def _file(value: object, info: ValidationInfo) -> Path:
    path = _path(value, info)
    if not has_file(path):
        raise broken(f"expected a file, found none at {path}")
    return path


def _data(value: object, info: ValidationInfo) -> Path:
    """A file; for images a folder too."""
    path = _path(value, info)
    kind = info.data.get("kind")  # absent where it is wrong, which is said elsewhere
    return path if kind in FORMS and FORMS[kind].images and has_directory(path) else _file(value, info)


def _model_directory(value: object, info: ValidationInfo) -> Path:
    path = _path(value, info)
    if not has_directory(path):
        raise broken(
            f"expected a model directory, found none at {path}; a hub id must be downloaded first, "
            "for example with 'hf download ID --local-dir DIRECTORY'"
        )
    if not has_file(path / "config.json"):
        raise broken(f"expected a model directory, found no config.json in {path}")
    return path


def _model(value: object, info: ValidationInfo) -> Path:
    """A model directory, or a GGUF file."""
    path = _path(value, info)
    return path if path.suffix == GGUF and has_file(path) else _model_directory(value, info)


def _adapter_directory(value: object, info: ValidationInfo) -> Path:
    path = _path(value, info)
    for name in (CONFIG, WEIGHTS):
        if not has_file(path / name):
            raise broken(f"expected a directory of PEFT's, found no {name} in {path}")
    return path


def _block(value: object) -> BlockShape:
    if isinstance(value, BlockShape):
        return value
    try:
        return BlockShape.parse(value if isinstance(value, str) else shown(value))
    except ConfigError as error:
        raise broken(str(error).removeprefix("block: ")) from error


def _page(value: object) -> int | None:
    if value is None or value == "auto":
        return None
    size = _bytes(value, "auto or a size such as 64KiB")
    least, most = _PAGE_LIMITS
    if not least <= size <= most or size & (size - 1):
        raise PydanticCustomError("expected", "auto or a power of two from 4KiB to 256MiB")
    return size


def _strength(value: object) -> object:
    return float("inf") if value == "inf" else value


def _comparison(value: object) -> object:
    return ("all" if value else "none") if isinstance(value, bool) else value


def _size(value: object) -> int | None:
    return None if value is None else _bytes(value, "a size such as 8MiB")


def _bytes(value: object, expected: LiteralString) -> int:
    try:
        return parse_size(value if isinstance(value, (int, str)) else shown(value))
    except (ConfigError, ValueError) as error:  # Python writes no number of thousands of digits
        raise PydanticCustomError("expected", expected) from error


def _text(pattern: str, *others: str, **bounds: float) -> WithJsonSchema:
    """For editors: a text of this form, or a value of another type."""
    return WithJsonSchema({"type": ["string", *others] if others else "string", "pattern": pattern, **bounds})


_SIZE = r"\d+(\.\d+)? *([KMGkmg]?[Ii]?[Bb])?"

ExistingFile = Annotated[Path, BeforeValidator(_file)]
Data = Annotated[Path, BeforeValidator(_data)]
ModelDirectory = Annotated[Path, BeforeValidator(_model_directory)]
Model = Annotated[Path, BeforeValidator(_model)]
AdapterDirectory = Annotated[Path, BeforeValidator(_adapter_directory)]
Block = Annotated[BlockShape, BeforeValidator(_block), _text(r"^\d+x\d+$")]
Page = Annotated[int | None, BeforeValidator(_page), _text(rf"^(auto|{_SIZE})$", "integer", "null")]
Size = Annotated[int | None, BeforeValidator(_size), _text(rf"^{_SIZE}$", "integer", "null")]
Strength = Annotated[float, BeforeValidator(_strength), Field(ge=0), _text("^inf$", "number", minimum=0)]
Saliency = Literal["gradient"]
Rows = Literal["on-demand", "resident"]
ExpertUnit = Literal["whole", "blocks"]
Unit = Literal["block", "half-layer", "layer"]
"""What tasks drop: blocks, or all blocks of the attention or feed-forward part of a layer, or of the whole layer."""
TaskName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
"""As a manifest takes it; pydantic doesn't know msgspec's bounds."""

Metrics = Annotated[tuple[TextMetric, ...], Field(min_length=1, max_length=8, strict=False)]
System = Annotated[str, Field(min_length=1, max_length=MOST_SYSTEM)]
Column = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
Length = Annotated[int, Field(ge=8, le=2**20)]
Sparsity = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Frozen(BaseModel):
    """Unknown keys refused; no silent conversion."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Compare = Annotated[
    Comparison, BeforeValidator(_comparison), WithJsonSchema({"enum": [*get_args(Comparison), True, False]})
]
"""True is all, False is none."""


_STEPS = frozenset({"steps", "private_steps"})


class AddedSpec(Frozen):
    """A task that takes another task's blocks; nothing of it is trained.

    Attributes:
        kind: that of the task whose blocks it takes.
        adapter: a directory that PEFT's ``save_pretrained`` wrote, of a LoRA trained on the model.
        like: the task whose blocks, kind and settings it takes; None is the first that keeps all blocks.
        system: the message that begins each of its conversations.
        eval: held-out data for the reported metric; its prompts say whether the task answers conversations.
        text, label, items, metrics: as of other tasks.
    """

    kind: TaskKind
    adapter: AdapterDirectory | None = None
    like: TaskName | None = None
    system: System | None = None
    eval: Data | None = None
    text: Column | None = None
    label: Column | None = None
    items: Count | None = None
    metrics: Metrics | None = None

    @model_validator(mode="after")
    def _consistent(self) -> AddedSpec:
        for key in ("text", "label", "items", "metrics"):
            if self.eval is None and getattr(self, key) is not None:
                raise broken(f"{key} makes no sense without eval")
        if self.metrics is not None and not FORMS[self.kind].completes:
            raise broken(f"metrics makes no sense for {self.kind}, which generates no texts to be measured")
        return self

    @property
    def columns(self) -> tuple[str, str]:
        """The column of what the task reads, and that of labels."""
        read, label = FORMS[self.kind].columns
        return self.text or read, self.label or label


class TaskSpec(Frozen):
    """One task.

    Attributes:
        kind: what it does with a text or an image.
        train: what it learns from and is calibrated on. A text-generation task without this and ``eval`` keeps all
            blocks as they are; nothing of it is trained or measured.
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
        system: the message that begins each conversation of a task without data.
    """

    kind: TaskKind
    train: Data | None = None
    eval: Data | None = None
    validation: Data | None = None
    sparsity: Sparsity | None = None
    text: Column | None = None
    label: Column | None = None
    image: Column | None = None
    head: ModelDirectory | None = None
    checkpoint: ModelDirectory | None = None
    max_length: Length | None = None
    items: Count | None = None
    metrics: Metrics | None = None
    max_new_tokens: Annotated[int, Field(ge=1, le=2**20)] | None = None
    system: System | None = None

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
        if self.train is None or self.eval is None:
            self._check_without_data()
        elif self.system is not None:
            raise broken("system: expected none beside train and eval, whose rows begin with messages of their own")
        for key in ("eval", "validation"):
            path: Path | None = getattr(self, key)
            if path is not None and self.train is not None and path.resolve() == self.train.resolve():
                raise broken(f"{key} must be held out: it is the training file {path}")
        return self

    def _check_without_data(self) -> None:
        missing = [key for key in ("train", "eval") if getattr(self, key) is None]
        if not self.completes or len(missing) == 1:
            both = " and ".join(missing)
            more = "; a text-generation task may have neither" if self.completes else ""
            raise broken(f"{both}: expected a file{more}, found nothing")
        for key in ("validation", "text", "label", "image", "checkpoint", "items", "metrics"):
            if getattr(self, key) is not None:
                raise broken(f"{key} makes no sense for a task without train and eval")
        if self.sparsity:
            raise broken(
                f"sparsity: expected 0 without train and eval, by which blocks are chosen, found {self.sparsity}"
            )

    @property
    def splits(self) -> dict[str, Path]:
        """The stated files by the names of their splits, the training split first."""
        found = {"train": self.train, "eval": self.eval, "validation": self.validation}
        return {split: path for split, path in found.items() if path is not None}

    @property
    def labelled(self) -> bool:
        """Whether it has classes, and so a head of its own: all but those that generate texts."""
        return not FORMS[self.kind].writes

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
        brings = self.head is not None or self.checkpoint is not None
        return (self.labelled or self.completes) and self.train is not None and not brings

    @property
    def takes_images(self) -> bool:
        """Whether it reads images; else it reads texts."""
        return FORMS[self.kind].images

    @property
    def columns(self) -> tuple[str, str]:
        """The column of what the task reads, and that of labels."""
        read, label = FORMS[self.kind].columns
        return self.image or self.text or read, self.label or label


class CalibrationSpec(Frozen):
    """What saliency is measured on.

    Attributes:
        items: training examples of each task.
        max_length: tokens at which texts are cut, in training and evaluation, and by the bundle's tasks in use.
        batch: examples at a time.
        seed: which examples are drawn.
    """

    items: Count = 256
    max_length: Length = 64
    batch: Count = 32
    seed: Seed = 0


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
    seed: Seed = 0


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
    seed: Seed = 0
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


class UnitsSpec(Frozen):
    """What tasks drop whole.

    Attributes:
        unit: blocks, or all blocks of a layer's attention or feed-forward part, or of the layer: these aren't computed.
        share: fraction of the blocks that goes by half-layers or layers, while blocks of the others make up the rest of
            ``sparsity``; None for all of it.
    """

    unit: Unit = "block"
    share: Sparsity | None = None

    @property
    def whole(self) -> bool:
        """Whether nothing but half-layers or layers is dropped."""
        return self.unit != "block" and self.share is None


class VisionSpec(Frozen):
    """The picture tower of a model that reads pictures among its words.

    Attributes:
        blocks: ``shared`` where all tasks have the same tower and connector, so that a picture's features are computed
            once for all of them; ``own`` where each task has its own.
        sparsity: fraction of the tower's blocks dropped; None is what tasks drop, and where they share the tower what
            the task drops that drops least.
    """

    blocks: TowerBlocks = "shared"
    sparsity: Sparsity | None = None


@dataclass(frozen=True)
class _OrAlone:
    """A section, or the value of its first key alone."""

    key: str
    values: tuple[str, ...]

    def section(self, value: object) -> object:
        return {self.key: value} if isinstance(value, str) else value

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """For editors."""
        return {"anyOf": [handler(core), {"type": "string", "enum": list(self.values)}]}


_METHOD_ALONE = _OrAlone("method", get_args(RecoverMethod))
_BLOCKS_ALONE = _OrAlone("blocks", get_args(TowerBlocks))
_UNIT_ALONE = _OrAlone("unit", get_args(Unit))

Units = Annotated[UnitsSpec, BeforeValidator(_UNIT_ALONE.section), _UNIT_ALONE]
"""A section, or the word alone that says what is dropped."""

Recover = Annotated[RecoverSpec, BeforeValidator(_METHOD_ALONE.section), _METHOD_ALONE]
"""A section, or the name of a method alone."""

Vision = Annotated[VisionSpec, BeforeValidator(_BLOCKS_ALONE.section), _BLOCKS_ALONE]
"""A section, or the word alone that says whose the blocks are."""
