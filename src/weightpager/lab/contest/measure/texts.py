"""Prompts out of the held-out texts that a bundle names; read once, not by the processes that are measured."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from weightpager.backends.native.model_limits import ModelConfig
from weightpager.bundle import Bundle, TaskEntry
from weightpager.errors import WeightpagerError
from weightpager.lab.contest.measure.prompt import TEXTS, TOKENS
from weightpager.machine.paths import has_file
from weightpager.readers.tokenizer import Tokenizer, open_tokenizer
from weightpager.task_data.held_out import read_held_out

_MOST = 500
"""Pieces of a task."""


def write_texts(bundle: Bundle, tasks: Sequence[str], folder: Path) -> None:
    """Write the file `TEXTS`, with those tasks whose held-out texts are on this machine and can be read."""
    if bundle.takes_images:
        return
    reader, pieces = open_tokenizer(bundle), {}
    for task in tasks:
        with suppress(WeightpagerError):  # the prompts are random then
            if len(found := _pieces(bundle.task(task), reader, ModelConfig.read(bundle).number("vocab_size") or 0)):
                pieces[task] = found
    save_file(pieces, folder / TEXTS)


def _pieces(entry: TaskEntry, reader: Tokenizer, vocabulary: int) -> npt.NDArray[Any]:
    """A task's texts one behind the other, cut to the length of a prompt."""
    if entry.eval is None or not has_file(path := Path(entry.eval.file)):
        return np.empty((0, TOKENS), np.int64)
    texts = read_held_out(entry, path, reader, vocabulary, 1)
    stream = np.concatenate([inputs["input_ids"][0] for inputs, _ in texts])
    return stream[: len(stream) // TOKENS * TOKENS].reshape(-1, TOKENS)[:_MOST]
