"""The texts of a task file's tasks as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from weightpager.compiler.data import classes
from weightpager.compiler.data.tokens import TransformersTokens, reader_of
from weightpager.compiler.task_file.file import TaskFile
from weightpager.task_data.held_out import items_reader, split_label
from weightpager.task_data.texts import Example, TextReader

Split = Literal["train", "eval"]


def task_texts(task_file: TaskFile, name: str, split: Split, tokenizer: Any) -> list[Sequence[int]]:
    """The token ids of a task's texts, as they are learnt: of prompts with their completions, cut at its length.

    Of running texts all are there: where windows begin and what is left behind the last one hangs on the vocabulary.

    Args:
        task_file: with the task, which reads texts.
        name: of the task.
        split: which of its files.
        tokenizer: of transformers.

    Raises:
        CompileError: the file can't be used.
    """
    task = task_file.tasks[name]
    reader: Any = reader_of(tokenizer) if task.completes else TransformersTokens(tokenizer)
    path = task.train if split == "train" else task.eval
    where = split_label(name, split, path)
    if not task.labelled and not task.completes:
        running = TextReader(task.kind, *task.columns, reader, (), task_file.max_length_of(name))
        return [running.begin, *running.running(path, where)]
    known = classes(name, task) if task.labelled else ()
    read = items_reader(task.kind, task.columns, reader, known, task_file.max_length_of(name))
    items = read(path, where, task.items if split == "eval" else None)
    return [item.tokens for item in items if isinstance(item, Example)]
