"""Tasks that take others' blocks: looked at before anything is trained, added and measured when all else is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from weightpager.bundle import Bundle, BundleWriter
from weightpager.bundle.addition import Addition, add_to_written
from weightpager.bundle.format.manifest import Generation
from weightpager.bundle.format.names import REPORT
from weightpager.bundle.format.picture_tower import is_before_words
from weightpager.bundle.peft import PeftAdapter
from weightpager.bundle.report.compile_report import read_report
from weightpager.compiler.data import TaskData, TransformersTokens, reader_of
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.resume.journal import CompileRun
from weightpager.compiler.selection.prepared import eval_data, generation_of
from weightpager.compiler.task_file.sections import AddedSpec
from weightpager.config import EngineConfig
from weightpager.engine import Engine
from weightpager.errors import CompileError, ConfigError
from weightpager.evaluation import measure
from weightpager.task_data.completions import form
from weightpager.task_data.held_out import items_reader, split_label


def additions(source: DenseModel, data: Mapping[str, TaskData]) -> list[Addition]:
    """What the task file adds to other tasks' blocks, in its order.

    Raises:
        ConfigError: an adapter doesn't fit the model; the text names the task.
        CompileError: held-out data can't be used, or there is a system message for a task without conversations.
    """
    file = source.task_file
    for name, spec in file.tasks.items():
        if spec.system is not None:
            _check_system(source, name, chats=source.tokenizer.chat_template is not None)
    whole = next((name for name in file.tasks if file.sparsity_of(name) == 0), "")
    return [_addition(source, data, name, spec, spec.like or whole) for name, spec in file.added.items()]


def _addition(source: DenseModel, data: Mapping[str, TaskData], name: str, spec: AddedSpec, origin: str) -> Addition:
    _check_adapter(source, name, spec)
    generation = generation_of(source, data, origin)
    if spec.eval is not None:
        generation = _asked(source, name, spec, origin, generation)
    if spec.system is not None:
        _check_system(source, name, chats=generation is not None and generation.prompts == "chat")
    held_out = eval_data(name, spec, among_words=source.pictures is not None)
    return Addition(name, spec.adapter, spec.like, spec.system, held_out, generation)


def _check_adapter(source: DenseModel, name: str, spec: AddedSpec) -> None:
    if spec.adapter is None:
        return
    try:
        found = PeftAdapter.read(spec.adapter, [info.entry for info in source.paged])
    except ConfigError as error:
        raise ConfigError(f"tasks.{name}.adapter: {error}") from error
    for part in found.parts if source.shares_tower else ():
        if is_before_words(part):
            raise ConfigError(f"tasks.{name}.adapter: expected no part of a tower that tasks share, found {part}")


def _asked(
    source: DenseModel, name: str, spec: AddedSpec, origin: str, generation: Generation | None
) -> Generation | None:
    """How answers are made of prompts as the held-out data has them, which is read to see that it can be."""
    reader: Any = source.reads
    if generation is not None:
        reader = reader_of(reader, source.picture_reader)
    elif not source.task_file.takes_images:
        reader = TransformersTokens(reader)
    assert spec.eval is not None
    read = items_reader(spec.kind, spec.columns, reader, source.classes(origin), source.task_file.max_length_of(origin))
    rows = read(spec.eval, split_label(name, "eval", spec.eval), spec.items)
    if generation is None:
        return None
    metrics = generation.metrics if spec.metrics is None else list(spec.metrics)
    return replace(generation, prompts=form(rows), metrics=metrics, system=None)


def _check_system(source: DenseModel, name: str, *, chats: bool) -> None:
    if chats:
        return
    template = source.tokenizer.chat_template is not None
    reason = "it reads plain prompts" if template else f"{source.path} has no chat template"
    raise CompileError(f"tasks.{name}.system: expected a task that answers conversations, but {reason}")


def add_tasks(writer: BundleWriter, added: Sequence[Addition], run: CompileRun) -> None:
    """Add tasks to a bundle that was just written, measure them, and have the report tell of it.

    Errors are those of `weightpager.bundle.addition.add_task`.
    """
    with run.stage("add tasks", one_step=True):
        for addition in added:
            add_to_written(writer, addition)
    measured = [addition.name for addition in added if addition.eval is not None]
    if not measured:
        return
    bundle = Bundle.open(writer.root)
    with run.stage("measure added tasks"), Engine(bundle, EngineConfig()) as engine:
        scores = measure(engine, measured, run.progress)
    report = read_report(bundle)
    writer.put(REPORT, report.model_copy(update={"added": [*report.added, *scores]}).dump())
    writer.finish(bundle.manifest)
