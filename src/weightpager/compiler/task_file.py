"""The task file: which model, which tasks, how sparse. Parsed once, frozen; unknown keys refused."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from blake3 import blake3
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError
from yaml.constructor import ConstructorError

from weightpager.blocks import MAX_TASKS, BlockShape
from weightpager.bundle.adapter import MOST_RANK
from weightpager.bundle.files import hash_file
from weightpager.bundle.layout import block_bytes
from weightpager.bundle.manifest import TaskKind, TaskName
from weightpager.config import parse_size
from weightpager.errors import ConfigError

Saliency = Literal["gradient", "second-moment", "block-obs"]
RecoverMethod = Literal["none", "closed-form", "finetune"]
PageDtype = Literal["bfloat16", "float32"]

_PAGE_LIMITS = (4096, 2**28)


def _broken(rule: str) -> PydanticCustomError:
    """An error whose text stands for itself."""
    return PydanticCustomError("rule", "{rule}", {"rule": rule})


def _path(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, (str, Path)) or not str(value):
        raise PydanticCustomError("expected", "a path")
    folder: Path = (info.context or {}).get("folder", Path())
    return folder / Path(value).expanduser()


def _file(value: object, info: ValidationInfo) -> Path:
    path = _path(value, info)
    if not path.is_file():
        raise _broken(f"expected a file, found none at {path}")
    return path


def _model_directory(value: object, info: ValidationInfo) -> Path:
    path = _path(value, info)
    if not path.is_dir():
        raise _broken(
            f"expected a model directory, found none at {path}; a hub id must be downloaded first, "
            "for example with 'hf download ID --local-dir DIRECTORY'"
        )
    if not (path / "config.json").is_file():
        raise _broken(f"expected a model directory, found no config.json in {path}")
    return path


def _block(value: object) -> BlockShape:
    if isinstance(value, BlockShape):
        return value
    try:
        return BlockShape.parse(str(value))
    except ConfigError as error:
        raise _broken(str(error).removeprefix("block: ")) from error


def _page(value: object) -> int | None:
    if value is None or value == "auto":
        return None
    try:
        size = parse_size(value if isinstance(value, int) else str(value))
    except ConfigError as error:
        raise PydanticCustomError("expected", "auto or a size such as 64KiB") from error
    least, most = _PAGE_LIMITS
    if not least <= size <= most or size & (size - 1):
        raise PydanticCustomError("expected", "auto or a power of two from 4KiB to 256MiB")
    return size


def _alignment(value: object) -> object:
    return float("inf") if value == "inf" else value


def _size(value: object) -> int | None:
    if value is None:
        return None
    try:
        return parse_size(value if isinstance(value, int) else str(value))
    except ConfigError as error:
        raise PydanticCustomError("expected", "a size such as 8MiB") from error


def _recover(value: object) -> object:
    return {"method": value} if isinstance(value, str) else value


ExistingFile = Annotated[Path, BeforeValidator(_file)]
ModelDirectory = Annotated[Path, BeforeValidator(_model_directory)]
Column = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
Length = Annotated[int, Field(ge=8, le=2**20)]
Sparsity = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, le=1)]


class _Frozen(BaseModel):
    """Unknown keys refused; no silent conversion."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TaskSpec(_Frozen):
    """One task.

    Attributes:
        train: what it learns from and is calibrated on.
        eval: held-out data for the reported metric.
        validation: held-out data for choices made while compiling.
        text, label: column names; None is the kind's usual one, see `text_column` and `label_column`.
        head: a checkpoint directory of the same architecture that brings the trained head.
        checkpoint: a checkpoint directory of the same architecture: all of the task's weights, head included.
        items: evaluate on the first ``items`` rows or windows of ``eval`` and ``validation`` only.
    """

    kind: TaskKind
    train: ExistingFile
    eval: ExistingFile
    validation: ExistingFile | None = None
    sparsity: Sparsity | None = None
    text: Column | None = None
    label: Column | None = None
    head: ModelDirectory | None = None
    checkpoint: ModelDirectory | None = None
    max_length: Length | None = None
    items: Count | None = None

    @model_validator(mode="after")
    def _consistent(self) -> TaskSpec:
        if self.kind == "language-modeling":
            for key in ("label", "head"):
                if getattr(self, key) is not None:
                    raise _broken(f"{key} makes no sense for language-modeling, which has neither labels nor own head")
        if self.head is not None and self.checkpoint is not None:
            raise _broken("head and checkpoint can't both be given: a checkpoint brings its own head")
        for key in ("eval", "validation"):
            path: Path | None = getattr(self, key)
            if path is not None and path.resolve() == self.train.resolve():
                raise _broken(f"{key} must be held out: it is the training file {path}")
        return self

    @property
    def labelled(self) -> bool:
        """False for language modeling."""
        return self.kind != "language-modeling"

    @property
    def trained(self) -> bool:
        """Whether the task's head has to be trained, and the model with it."""
        return self.labelled and self.head is None and self.checkpoint is None

    @property
    def text_column(self) -> str:
        """The column of texts or of token lists."""
        return self.text or ("tokens" if self.kind == "token-classification" else "text")

    @property
    def label_column(self) -> str:
        """The column of labels or of tag lists."""
        return self.label or ("tags" if self.kind == "token-classification" else "label")


class CalibrationSpec(_Frozen):
    """What saliency is measured on: ``items`` training examples, in batches of ``batch``."""

    items: Count = 256
    max_length: Length = 64
    batch: Count = 32


class TrainingSpec(_Frozen):
    """How the dense model is trained: ``steps`` in all, shared by the tasks that have no head yet."""

    steps: Count = 360
    learning_rate: Rate = 3e-4
    head_learning_rate: Rate = 2e-3
    batch: Count = 32
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class RecoverSpec(_Frozen):
    """How the accuracy that dropped blocks cost is won back.

    Attributes:
        method: ``closed-form`` refits values by least squares, ``finetune`` trains them.
        steps: of joint training, shared by all tasks.
        distillation: weight of the dense model's answers in the loss; labels have the rest.
        private_blocks: share of a task's kept blocks that get values of their own, loaded at every switch to it.
        private_steps: of training them, per task.
        low_rank: rank of a task's own part that is added to every paged weight; 0 for none.
        patience: checks on the validation data without improvement after which a training ends; 0 makes none.
    """

    method: RecoverMethod = "none"
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


class TaskFile(_Frozen):
    """The whole file; paths are absolute or start from the working directory.

    Attributes:
        sparsity: fraction of blocks dropped by tasks that state none.
        alignment: what a block loaded per switch costs, in mean block saliencies; infinity asks for one shared mask.
        reorder: permute the model so that blocks hold weights that the same tasks need.
        max_switch: bytes; the weakest alignment whose average switch loads no more is taken instead of ``alignment``.
        accuracy_loss: points; the strongest alignment that costs no more is taken instead of ``alignment``.
        recover: a method, or its name alone.
        tolerance: blocks of a task's checkpoint that differ less from the model's, relative to their norm, are shared.
        compare: also train one shared mask where recovery trains, to compare with; that takes as long again.
        page: bytes, None to let the packer choose.
    """

    model: ModelDirectory
    block: Annotated[BlockShape, BeforeValidator(_block)] = BlockShape(16, 32)
    dtype: PageDtype = "bfloat16"
    sparsity: Sparsity = 0.3
    alignment: Annotated[float, BeforeValidator(_alignment), Field(ge=0)] = 0.5
    max_switch: Annotated[int | None, BeforeValidator(_size)] = None
    accuracy_loss: Annotated[float | None, Field(gt=0, le=100)] = None
    saliency: Saliency = "gradient"
    reorder: bool = False
    page: Annotated[int | None, BeforeValidator(_page)] = None
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.01
    transitions: ExistingFile | None = None
    calibration: CalibrationSpec = CalibrationSpec()
    training: TrainingSpec = TrainingSpec()
    compare: bool = False
    recover: Annotated[RecoverSpec, BeforeValidator(_recover)] = RecoverSpec()
    tasks: Annotated[dict[TaskName, TaskSpec], Field(min_length=1, max_length=MAX_TASKS)]

    @model_validator(mode="after")
    def _consistent(self) -> TaskFile:
        least = block_bytes(self.block, self.dtype)
        if self.page is not None and self.page < least:
            raise _broken(f"page: expected at least one {self.dtype} block of {least} bytes, found {self.page}")
        self._check_own_weights()
        stated = self.model_fields_set & {"alignment", "max_switch", "accuracy_loss"}
        chosen = [key for key in ("alignment", "max_switch", "accuracy_loss") if key in stated]
        if len(chosen) > 1:
            raise _broken(f"expected one of alignment, max_switch and accuracy_loss, found {' and '.join(chosen)}")
        if self.recover.low_rank and self.recover.method != "finetune":
            found = f"{self.recover.low_rank} with method {self.recover.method}"
            raise _broken(f"recover.low_rank: expected 0, or method finetune, which trains it; found {found}")
        return self

    def _check_own_weights(self) -> None:
        own = next((name for name, task in self.tasks.items() if task.checkpoint is not None), None)
        if own is None:
            return
        if self.recover.method != "none":
            raise _broken(
                f"recover: expected none, found {self.recover.method}: it fits values that all tasks share, "
                f"and {own} has a checkpoint of its own"
            )
        for name, task in self.tasks.items():
            if task.trained:
                raise _broken(
                    f"tasks.{name}: expected a head or a checkpoint: training this task would change the model's "
                    f"weights, and those that {own}'s checkpoint shares with it"
                )

    def sparsity_of(self, task: str) -> float:
        """The fraction of blocks that the task drops."""
        own = self.tasks[task].sparsity
        return self.sparsity if own is None else own

    def identity(self) -> str:
        """A hash of all settings, of the tasks' files and of the model's: the same ones train the same weights."""
        files = [path for task in self.tasks.values() for path in (task.train, task.validation) if path is not None]
        own = [path for task in self.tasks.values() for path in (task.head, task.checkpoint) if path is not None]
        for folder in (self.model, *own):
            files += sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
        facts = [self.model_dump_json(), *(hash_file(path).blake3 for path in files)]
        return blake3("\n".join(facts).encode()).hexdigest()

    def max_length_of(self, task: str) -> int:
        """Tokens at which the task's texts are cut, or the length of its windows."""
        return self.tasks[task].max_length or self.calibration.max_length


def load(path: str | Path) -> TaskFile:
    """Read a task file; relative paths in it start from its folder.

    Raises:
        ConfigError: with the file, the dotted key, what was expected and what was found.
    """
    path = Path(path)
    try:
        content = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected a YAML file: {_syntax(error)}") from error
    return from_dict(content, path.parent, str(path))


def with_wish(task_file: TaskFile, max_switch: str | None, accuracy_loss: float | None) -> TaskFile:
    """The same with what a command line asks for in place of the file's own alignment, ``max_switch`` or loss.

    Raises:
        ConfigError: both are given, or one is no size or no number of points.
    """
    given = {"max_switch": max_switch, "accuracy_loss": accuracy_loss}
    stated = {key: value for key, value in given.items() if value is not None}
    if not stated:
        return task_file
    # Of the other settings only those that the file states, so that a default isn't taken for a wish.
    kept = {key: getattr(task_file, key) for key in task_file.model_fields_set - {"alignment", *given}}
    return from_dict(kept | stated, name="command line")


def from_dict(content: Mapping[str, Any], folder: str | Path = ".", name: str = "task file") -> TaskFile:
    """The same from a mapping; relative paths start from ``folder``, errors speak of ``name``.

    Raises:
        ConfigError: as `load`.
    """
    if not isinstance(content, Mapping):
        raise ConfigError(f"{name}: expected keys and values such as 'model: DIRECTORY', found {_shown(content)}")
    try:
        return TaskFile.model_validate(dict(content), context={"folder": Path(folder)})
    except ValidationError as error:
        lines = [f"{name}: {_explain(detail)}" for detail in error.errors(include_url=False)]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


class _Loader(yaml.SafeLoader):
    """``yaml.safe_load`` that refuses duplicate and non-text keys and reads ``1e-4`` as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.tag != "tag:yaml.org,2002:str":
                raise ConstructorError(None, None, f"the key {key.value!r} is no text: quote it", key.start_mark)
            if key.value in seen:
                raise ConstructorError(None, None, f"the key {key.value!r} is there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# YAML 1.1 wants a dot in a float; people and YAML 1.2 don't.
_FLOAT = re.compile(r"[-+]?\d+[eE][-+]?\d+")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))


def _syntax(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else problem


_EXPECTED = {
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "string_pattern_mismatch": "a name of lower-case letters, digits, '_', '.' and '-', 64 at most",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "dict_type": "keys and values",
    "model_type": "keys and values",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "literal_error": "{expected}",
    "too_short": "at least {min_length} entry",
    "too_long": "at most {max_length} entries",
}


def _explain(detail: ErrorDetails) -> str:
    """One validation error as a person reads it."""
    where = [str(part) for part in detail["loc"] if part != "[key]"]
    kind, found, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "rule":
        return ": ".join(filter(None, [".".join(where), detail["msg"]]))
    if kind == "extra_forbidden":
        return _unknown(where)
    if kind == "missing":
        return f"{'.'.join(where)}: expected a value, found nothing"
    expected = _EXPECTED[kind].format(**context) if kind in _EXPECTED else detail["msg"]
    if kind in ("too_short", "too_long"):
        found = len(found)
    hint = _hint(found, expected.replace("'", "").replace(" or ", ", ").split(", ")) if kind == "literal_error" else ""
    return f"{'.'.join(where)}: expected {expected.removeprefix('Input should be ')}, found {_shown(found)}{hint}"


def _unknown(where: list[str]) -> str:
    sections: dict[str, type[BaseModel]] = {
        "tasks": TaskSpec,
        "calibration": CalibrationSpec,
        "training": TrainingSpec,
        "recover": RecoverSpec,
    }
    known = list((sections[where[0]] if len(where) > 1 else TaskFile).model_fields)
    hint = _hint(where[-1], known) or f"; the keys here are {', '.join(known)}"
    return f"{'.'.join(where)}: unknown key{hint}"


def _hint(found: object, known: list[str]) -> str:
    close = get_close_matches(str(found), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _shown(found: object) -> str:
    if found is None:
        return "nothing"
    text = repr(found)
    return text if len(text) <= 80 else text[:77] + "..."
