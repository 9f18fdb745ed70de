"""The task file: which model, which tasks, how sparse. Parsed once, frozen; unknown keys refused."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from yaml.constructor import ConstructorError

from weightpager.blocks import MAX_TASKS, BlockShape
from weightpager.compiler.task_file.sections import (
    GGUF,
    AddedSpec,
    Block,
    CalibrationSpec,
    Compare,
    Effort,
    ExistingFile,
    ExpertUnit,
    Frozen,
    Model,
    Page,
    Recover,
    RecoverSpec,
    Rows,
    Saliency,
    Size,
    Sparsity,
    Strength,
    TaskName,
    TaskSpec,
    TrainingSpec,
    Units,
    UnitsSpec,
    Vision,
    VisionSpec,
    broken,
)
from weightpager.errors import ConfigError, shown
from weightpager.machine.paths import has_file
from weightpager.page_dtype import DEFAULT, PageDtype, block_bytes

_EXPECTED = {
    "string_type": "text",
    "string_unicode": "Unicode text without lone surrogates",
    "string_too_short": "text that is not empty",
    "string_pattern_mismatch": "a name of lower-case letters and digits, then '_', '.' and '-' too, 64 at most",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "tuple_type": "a list, such as [chrf]",
    "dict_type": "keys and values",
    "model_type": "keys and values",
    "greater_than": "more than {gt:.12g}",
    "greater_than_equal": "at least {ge:.12g}",
    "less_than": "less than {lt:.12g}",
    "less_than_equal": "at most {le:.12g}",
    "literal_error": "{expected}",
    "too_short": "at least {min_length} entry",
    "too_long": "at most {max_length} entries",
}

_LONG = 80
"""Characters of a word that can't be meant for a known one."""


def explain_all(details: Sequence[ErrorDetails], sections: Mapping[str, type[BaseModel]]) -> list[str]:
    """Validation errors as a person reads them, each text once.

    A list of wrong entries isn't called too short: pydantic counts the right ones alone.
    """
    blamed = {detail["loc"][:depth] for detail in details for depth in range(len(detail["loc"]))}
    own = [detail for detail in details if detail["type"] != "too_short" or detail["loc"] not in blamed]
    return list(dict.fromkeys(explain(detail, sections) for detail in own))


def explain(detail: ErrorDetails, sections: Mapping[str, type[BaseModel]]) -> str:
    """One validation error as a person reads it; ``sections`` are by name, the whole file under the empty name."""
    place = [str(part) for part in detail["loc"] if part != "[key]"]
    where = ["tasks", *place[1:]] if place[:1] == ["added"] else place  # where they stand in a file
    kind, found, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "rule":
        return ": ".join(filter(None, [".".join(where), detail["msg"]]))
    if kind == "extra_forbidden":
        return _unknown(where, place, sections)
    if kind == "missing":
        return f"{'.'.join(where)}: expected a value, found nothing"
    expected = _EXPECTED[kind].format(**context) if kind in _EXPECTED else detail["msg"]
    if kind in ("too_short", "too_long"):
        found = len(found)
    hint = _hint(found, expected.replace("'", "").replace(" or ", ", ").split(", ")) if kind == "literal_error" else ""
    return f"{'.'.join(where)}: expected {expected.removeprefix('Input should be ')}, found {shown(found)}{hint}"


def _unknown(where: list[str], place: list[str], sections: Mapping[str, type[BaseModel]]) -> str:
    known = list(sections[place[0] if len(place) > 1 else ""].model_fields)
    elsewhere = [name for name, section in sections.items() if where[-1] in section.model_fields]
    hint = _place(elsewhere) or _hint(where[-1], known) or f"; the keys here are {', '.join(known)}"
    return f"{'.'.join(where)}: unknown key{hint}"


def _place(sections: Sequence[str]) -> str:
    """Where a key belongs that is one of other sections; the whole file's is the empty name."""
    places = ["a task" if name == "tasks" else repr(name) if name else "the file itself" for name in sections]
    return f"; it belongs to {' or '.join(places)}" if places else ""


def _hint(found: object, known: list[str]) -> str:
    close = get_close_matches(found, known, n=1) if isinstance(found, str) and len(found) < _LONG else []
    return f"; did you mean {close[0]!r}?" if close else ""


_SPARSITY = {"finetune": 0.75}
_SPARSITY_UNTRAINED = 0.3
"""Fractions of blocks dropped where none is stated: what training wins back, and what is borne without."""

STRENGTHS = ("alignment", "max_switch", "accuracy_loss")
"""Settings of which a file states at most one: it says how strong the alignment is."""


class TaskFile(Frozen):
    """A task file; once it is read, paths are absolute or start from the working directory.

    Attributes:
        model: a Hugging Face model directory: an encoder or a decoder, of texts or of images, or a decoder behind a
            picture tower. Or a GGUF file of a decoder.
        block: rows × columns of weights that are kept or dropped together.
        dtype: of the paged weights.
        sparsity: fraction of blocks dropped by tasks that state none; if this states none either, 0.75 where recovery
            trains, or else 0.3.
        alignment: what a block loaded per switch costs, in mean block saliencies; infinity asks for one shared mask.
        saliency: how a block's importance is measured.
        reorder: permute the model so that blocks hold weights that the same tasks need.
        fit: bytes; density and dtype are chosen so that the weights in memory take no more, instead of ``sparsity`` and
            ``dtype``.
        effort: how much is trained to find out what to make of ``fit``, or of no size at all; ``quick`` goes by rules.
        max_switch: bytes; the weakest alignment whose average switch loads no more is taken instead of ``alignment``.
        accuracy_loss: points; the strongest alignment that costs no more is taken instead of ``alignment``.
        vision: a picture tower's blocks, or the word alone that says whose they are.
        experts: whether tasks keep whole experts of a mixture and all of its other weights, or any blocks.
        units: what tasks drop whole, or the word alone; ``sparsity`` is a share of the blocks in any case.
        keep: the share of the dense model's metric that every task keeps on its validation data, before recovery;
            sparsity follows from it. ``fit`` beside it is a limit that must do.
        recover: a method, or its name alone.
        tolerance: blocks of a task's checkpoint that differ less from the model's, relative to their norm, are shared.
        transitions: a trace of past switches; without one every task is as likely as any other to come next.
        calibration: how models are calibrated.
        training: how models are trained.
        tasks: by name. One with an ``adapter`` or ``like`` takes another task's blocks.
        added: those of the tasks that do.
        compare: what else to measure; where recovery trains, the dense model is trained as long, and for ``all`` one
            shared mask too, each of which takes as long again.
        rows: whether rows of large embedding tables come on demand, as int8, or whole tables stay in memory.
        page: bytes; ``auto``, or None, lets the packer choose.
    """

    model: Model
    block: Block = BlockShape(16, 32)
    dtype: PageDtype = DEFAULT
    sparsity: Sparsity | None = None
    fit: Size = None
    effort: Effort = "normal"
    alignment: Strength = 0.5
    max_switch: Size = None
    accuracy_loss: Annotated[float | None, Field(gt=0, le=100)] = None
    saliency: Saliency = "gradient"
    reorder: bool = True
    page: Page = None
    rows: Rows = "on-demand"
    vision: Vision = VisionSpec()
    experts: ExpertUnit = "whole"
    units: Units = UnitsSpec()
    keep: Annotated[float | None, Field(gt=0, le=1)] = None
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.01
    transitions: ExistingFile | None = None
    calibration: CalibrationSpec = CalibrationSpec()
    training: TrainingSpec = TrainingSpec()
    compare: Compare = "dense"
    recover: Recover = RecoverSpec()
    tasks: Annotated[dict[TaskName, TaskSpec], Field(min_length=1, max_length=MAX_TASKS)]
    added: dict[TaskName, AddedSpec] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _apart(cls, content: Any) -> Any:
        """Tell tasks that take others' blocks from these; they stand among them in a file."""
        tasks = content.get("tasks") if isinstance(content, dict) else None
        if not isinstance(tasks, dict):
            return content
        found = {name: spec for name, spec in tasks.items() if isinstance(spec, dict) and {"adapter", "like"} & {*spec}}
        others = {name: spec for name, spec in tasks.items() if name not in found}
        return {**content, "tasks": others, "added": {**content.get("added", {}), **found}} if found else content

    @model_validator(mode="after")
    def _consistent(self) -> TaskFile:
        self._check_page()
        self._check_fit()
        self._check_units()
        self._check_own_weights()
        self._check_without_data()
        self._check_added()
        images = [name for name, task in self.tasks.items() if task.takes_images]
        if 0 < len(images) < len(self.tasks):
            raise broken(f"tasks: expected all to read images as {images[0]} does, or none")
        chosen = [key for key in STRENGTHS if key in self.model_fields_set]
        if len(chosen) > 1:
            raise broken(f"expected one of alignment, max_switch and accuracy_loss, found {' and '.join(chosen)}")
        for key in ("low_rank", "private_blocks"):
            if self.recover.method != "finetune" and getattr(self.recover, key):
                found = f"{getattr(self.recover, key)} with method {self.recover.method}"
                raise broken(f"recover.{key}: expected 0, or method finetune, which trains it; found {found}")
        if self.recover.method != "finetune" and self.recover.start != "dense":
            raise broken(f"recover.start: expected method finetune, found {self.recover.method}")
        return self

    def _check_page(self) -> None:
        dtype, chosen = (self.dtype, "") if self.fits is None else ("bfloat16", ", which fit may choose")
        least = block_bytes(self.block, dtype)
        if self.page is not None and self.page < least:
            raise broken(f"page: expected at least one {dtype} block of {least} bytes{chosen}, found {self.page}")

    def _check_fit(self) -> None:
        stated = sorted(self.model_fields_set & {"sparsity", "dtype"})
        stated += [f"tasks.{name}.sparsity" for name, task in self.tasks.items() if task.sparsity is not None]
        stated += ["vision.sparsity"] * (self.vision.sparsity is not None)
        if self.keep is not None and (found := [key for key in stated if key != "dtype"]):
            raise broken(
                f"keep: expected no {' and no '.join(found)} beside it, since it chooses sparsity; leave one out"
            )
        if self.fits is not None and stated:
            raise broken(
                f"fit: expected no {' and no '.join(stated)} beside it, since it chooses sparsity and dtype; leave "
                "out one or the other"
            )

    def _check_units(self) -> None:
        chosen = [key for key in STRENGTHS[1:] if key in self.model_fields_set]
        if self.keep is not None and chosen:
            raise broken(
                f"keep: expected no {chosen[0]} beside it: one of them decides; state alignment, or leave one out"
            )
        if self.units.unit == "block":
            if self.units.share is not None:
                raise broken(f"units.share: expected a unit of half-layers or layers, found {self.units.unit}")
            return
        if self.keep is not None and self.units.share is not None:
            raise broken("units.share: expected none beside keep, which drops blocks or half-layers")
        if self.recover.refits or self.recover.low_rank:
            found = "closed-form" if self.recover.refits else f"low_rank {self.recover.low_rank}"
            raise broken(
                f"recover: expected none, or finetune alone, beside units of {self.units.unit}s, found {found}"
            )
        if self.vision.sparsity is not None and self.units.whole:
            raise broken(
                f"vision.sparsity: expected none beside units of {self.units.unit}s, which leave a picture tower whole"
            )

    def _check_without_data(self) -> None:
        """Refuse settings by which something is chosen or trained for a task that has nothing to do it with."""
        name = next((name for name, task in self.tasks.items() if task.train is None), None)
        if name is None:
            return
        for key in ("keep", "fit", "accuracy_loss"):
            if getattr(self, key) is not None:
                raise broken(f"{key}: expected none beside tasks.{name}, which has no data")
        for key, found, usual in (
            ("recover", self.recover.method, "none"),
            ("units", self.units.unit, "block"),
            ("compare", self.compare, "dense"),
        ):
            if found not in (usual, "none"):
                raise broken(f"{key}: expected {usual} beside tasks.{name}, which has no data, found {found}")
        if self.sparsity and not self.has_data:
            raise broken(
                f"sparsity: expected 0, or a task with data, by which blocks are chosen, found {self.sparsity}"
            )
        if self.vision.sparsity:
            raise broken(f"vision.sparsity: expected 0 beside tasks.{name}, which has no data")

    def _check_added(self) -> None:
        if len(self.tasks) + len(self.added) > MAX_TASKS:
            found = len(self.tasks) + len(self.added)
            raise broken(f"tasks: expected at most {MAX_TASKS}, found {found}")
        adapters = any(spec.adapter is not None for spec in self.added.values())
        if self.added and self.recover.low_rank:
            raise broken(
                "recover.low_rank: expected 0 beside tasks that take others' blocks, maybe with parts of their own, "
                f"found {self.recover.low_rank}"
            )
        if adapters and self.units.unit != "block":
            raise broken(f"units: expected block beside adapters, which need all weights, found {self.units.unit}")
        chosen = self.keep is not None or self.fit is not None
        whole = not chosen and any(self.sparsity_of(name) == 0 for name in self.tasks)
        for name, spec in self.added.items():
            if spec.like is None and not whole:
                known = ", ".join(self.tasks)
                raise broken(f"tasks.{name}.like: expected the task whose blocks it takes ({known}), as none keeps all")
            if spec.like is not None and spec.like not in self.tasks:
                known = ", ".join(self.tasks)
                raise broken(f"tasks.{name}.like: expected a task with blocks of its own ({known}), found {spec.like}")
            if spec.kind not in {task.kind for task in self.tasks.values()}:
                raise broken(f"tasks.{name}.kind: expected that of a task with blocks of its own, found {spec.kind}")

    def _check_own_weights(self) -> None:
        with_checkpoint = next((name for name, task in self.tasks.items() if task.checkpoint is not None), None)
        if with_checkpoint is None:
            return
        if self.recover.method != "none":
            raise broken(
                f"recover: expected none, found {self.recover.method}: it fits values that all tasks share, "
                f"and {with_checkpoint} has a checkpoint of its own"
            )
        for name, task in self.tasks.items():
            if task.trained:
                raise broken(
                    f"tasks.{name}: expected a head or a checkpoint: training this task would change the model's "
                    f"weights, and those that {with_checkpoint}'s checkpoint shares with it"
                )

    @property
    def has_data(self) -> bool:
        """Whether any task has data to be trained, calibrated and measured on."""
        return any(task.train is not None for task in self.tasks.values())

    @property
    def takes_images(self) -> bool:
        """Whether the tasks read images; else they read texts."""
        return any(task.takes_images for task in self.tasks.values())

    @property
    def fits(self) -> int | None:
        """Bytes by which sparsity and dtype are chosen; None where they aren't."""
        return self.fit if self.keep is None else None

    @property
    def sized(self) -> bool:
        """Whether the file decides how many blocks tasks keep, or by what that is chosen."""
        stated = (self.fit, self.keep, self.sparsity, *(task.sparsity for task in self.tasks.values()))
        return any(value is not None for value in stated) or self.units.unit != "block" or not self.has_data

    def sparsity_of(self, task: str) -> float:
        """The fraction of blocks that the task drops; nothing tells which one without data drops."""
        if self.tasks[task].train is None:
            return 0.0
        stated = (self.tasks[task].sparsity, self.sparsity)
        usual = _SPARSITY.get(self.recover.method, _SPARSITY_UNTRAINED)
        return next((value for value in stated if value is not None), usual)

    def tower_sparsity_of(self, task: str) -> float:
        """The fraction of a picture tower's blocks that the task drops."""
        if self.vision.sparsity is not None:
            return self.vision.sparsity
        if self.units.whole:
            return 0.0
        return min(map(self.sparsity_of, self.tasks)) if self.vision.blocks == "shared" else self.sparsity_of(task)

    @property
    def trained_tasks(self) -> tuple[str, ...]:
        """Labelled tasks that bring no head, in the file's order."""
        return tuple(name for name, task in self.tasks.items() if task.trained)

    @property
    def recovery_steps(self) -> int:
        """Steps that recovery trains in all, those of private blocks and low-rank parts included."""
        if self.recover.method != "finetune":
            return 0
        return self.recover.steps + self.recover.private_steps * len(self.tasks) * self.recover.trains_alone

    def max_length_of(self, task: str) -> int:
        """Tokens at which the task's texts are cut, or the length of its windows; nothing that matters for images."""
        return self.tasks[task].max_length or self.calibration.max_length


def load(path: str | Path) -> TaskFile:
    """Read a task file; relative paths in it start from its folder.

    The path of a model stands for a file that names it and one task without data, ``chat``.

    Raises:
        ConfigError: with the file, the dotted key, what was expected and what was found.
    """
    path = Path(path)
    if path.suffix == GGUF or has_file(path / "config.json"):
        return from_dict({"model": str(path), "tasks": {"chat": {"kind": "text-generation"}}}, name=str(path))
    try:
        content = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except RecursionError:
        raise ConfigError(f"{path}: expected a YAML file, found one that is nested too deep") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected a YAML file: {_syntax(error)}") from error
    return from_dict(content, path.parent, str(path))


def restated(task_file: TaskFile, **asked: object) -> TaskFile:
    """The file with what a command line asks for, in place of its own settings; None asks for nothing.

    Raises:
        ConfigError: as `load`; its text speaks of the command line.
    """
    given = {key: value for key, value in asked.items() if value is not None}
    if not given:
        return task_file
    replaced = {*given, *(STRENGTHS if given.keys() & STRENGTHS else ())}
    # Of the other settings only those that the file states, so that a default isn't taken for a wish.
    kept = {key: getattr(task_file, key) for key in task_file.model_fields_set - replaced}
    return from_dict({**kept, **given}, name="command line")


def from_dict(content: Mapping[str, Any], folder: str | Path = ".", name: str = "task file") -> TaskFile:
    """Read a task file from a mapping; relative paths start from ``folder``, errors speak of ``name``.

    Raises:
        ConfigError: as `load`.
    """
    if not isinstance(content, Mapping):
        raise ConfigError(f"{name}: expected keys and values such as 'model: DIRECTORY', found {shown(content)}")
    try:
        return TaskFile.model_validate(dict(content), context={"folder": Path(folder)})
    except ValidationError as error:
        lines = explain_all(error.errors(include_url=False), SECTIONS)
        raise ConfigError("\n".join(f"{name}: {line}" for line in lines)) from None


SECTIONS: dict[str, type[BaseModel]] = {
    "": TaskFile,
    "tasks": TaskSpec,
    "added": AddedSpec,
    "calibration": CalibrationSpec,
    "training": TrainingSpec,
    "recover": RecoverSpec,
    "units": UnitsSpec,
    "vision": VisionSpec,
}
"""Sections by their key; the whole file by the empty one."""


class _Loader(yaml.SafeLoader):
    """``yaml.safe_load`` that refuses duplicate and non-text keys and reads ``1e-4`` as a number.

    It names values that only look like one, such as the date 2024-02-30, at which PyYAML ends with any error.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, ArithmeticError, LookupError, AttributeError) as error:
            what = f"{_words(node)} is no {node.tag.rpartition(':')[2]}; quote it if it is text"
            raise ConstructorError(None, None, what, node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.tag != "tag:yaml.org,2002:str" or not isinstance(key, yaml.ScalarNode):
                raise ConstructorError(None, None, f"the key {_words(key)} is no text: quote it", key.start_mark)
            if key.value in seen:
                raise ConstructorError(None, None, f"the key {key.value!r} is there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# YAML 1.1 wants a dot in a float; people and YAML 1.2 don't.
_FLOAT = re.compile(r"[-+]?\d+[eE][-+]?\d+")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))


def _words(node: yaml.Node) -> str:
    """A node as a message shows it, for which none inside of it is looked at."""
    if isinstance(node, yaml.ScalarNode):
        return shown(node.value)
    return "{...}" if isinstance(node, yaml.MappingNode) else "[...]"


def _syntax(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else problem
