"""Prompts out of the held-out texts that a bundle names; read once, not by the processes that are measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from weightpager.backends.native.model_limits import ModelConfig
from weightpager.bundle import Bundle, TaskEntry
from weightpager.bundle.held_out_places import held_out_file
from weightpager.errors import WeightpagerError
from weightpager.lab.contest.measure.prompt import TEXTS, TOKENS
from weightpager.readers.tokenizer import Tokenizer, open_tokenizer
from weightpager.task_data.held_out import read_held_out

_MOST = 500
"""Pieces of a task."""


def write_texts(bundle: Bundle, tasks: Sequence[str], folder: Path) -> None:
    """Write the file `TEXTS`, with those tasks whose held-out texts are on this machine and can be read."""
    if bundle.takes_images:
        return
    named = {task: stated for task in tasks if (stated := bundle.task(task).eval) is not None}
    found = {task: file for task, stated in named.items() if (file := held_out_file(bundle, stated)) is not None}
    save_file(_pieces(bundle, found) if found else {}, folder / TEXTS)


def _pieces(bundle: Bundle, files: Mapping[str, Path]) -> dict[str, npt.NDArray[Any]]:
    """Pieces by task; of none whose texts can't be read, as its prompts are random then."""
    found = {}
    with suppress(WeightpagerError):
        reader, vocab_size = open_tokenizer(bundle), ModelConfig.read(bundle).number("vocab_size") or 0
        for task, file in files.items():
            with suppress(WeightpagerError):
                if len(pieces := _pieces_of(bundle.task(task), file, reader, vocab_size)):
                    found[task] = pieces
    return found


def _pieces_of(entry: TaskEntry, file: Path, reader: Tokenizer, vocab_size: int) -> npt.NDArray[Any]:
    """A task's texts one behind the other, cut to the length of a prompt."""
    texts = read_held_out(entry, file, reader, vocab_size, 1)
    stream = np.concatenate([inputs["input_ids"][0] for inputs, _ in texts])
    return stream[: len(stream) // TOKENS * TOKENS].reshape(-1, TOKENS)[:_MOST]
