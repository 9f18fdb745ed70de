"""What every method is asked for its first output: the same for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from weightpager.answers.model import Inputs
from weightpager.backends.native.model_limits import ModelConfig
from weightpager.bundle import Bundle, TaskEntry
from weightpager.bundle.held_out_places import held_out_file
from weightpager.bundle.report.compile_report import CompileReport, TaskScore
from weightpager.engine import Engine
from weightpager.errors import ConfigError, WeightpagerError
from weightpager.evaluation import measure
from weightpager.progress import Progress
from weightpager.readers.image_reader import read_image_model
from weightpager.readers.tokenizer import Tokenizer, open_tokenizer
from weightpager.task_data.held_out import read_held_out
from weightpager_lab.contest.result import Source
from weightpager_lab.contest.rivals.rival import DTYPE

TOKENS = 32

TEXTS = "texts.safetensors"
"""A file with pieces of each task's held-out texts, int64 [pieces, TOKENS] by task; tasks without any aren't in it."""


class Prompts:
    """Prompts by number: every method gets the same ones, and no two switches of it the same.

    Pieces of held-out texts come round again, in another order, where a task has fewer of them than there are numbers.

    Attributes:
        source: of the first task's.

    Args:
        bundle: of the tasks.
        seed: of the contest.
        texts: a file as `TEXTS`; if it isn't there, prompts are random.
    """

    def __init__(self, bundle: Bundle, seed: int, texts: Path) -> None:
        self._bundle = bundle
        self._seed = seed
        self._pieces = load_file(texts) if texts.is_file() else {}
        self.source: Source = "held-out" if next(iter(bundle.tasks)) in self._pieces else "random"

    def of(self, task: str, *number: int) -> Inputs:
        """A task's prompt of this number, which may have several parts; the last one counts."""
        pieces = self._pieces.get(task)
        if pieces is None:
            return prompt(self._bundle, task, (self._seed, *number))
        *purpose, count = number
        turn, at = divmod(count, len(pieces))
        # a seed's trailing zeros don't count: with its length in front, no purpose has another's order
        order = np.random.default_rng((self._seed, len(purpose), *purpose, turn)).permutation(len(pieces))
        return _text(pieces[[order[at]]])


def prompt(bundle: Bundle, task: str, seed: int | Sequence[int]) -> Inputs:
    """One text of random words, or one image of random pixels.

    Raises:
        ConfigError: the model doesn't say how many words it knows, or how large its images are.
    """
    drawn = np.random.default_rng(seed)
    if bundle.task(task).takes_images:
        return {"pixel_values": drawn.standard_normal((1, *_shape(bundle)), np.float32)}
    words = ModelConfig.read(bundle).number("vocab_size")
    if words is None:
        raise ConfigError("expected a model whose configuration has vocab_size, found none")
    return _text(drawn.integers(0, words, (1, TOKENS), np.int64))


def items(bundle: Bundle, task: str) -> int:
    """What `prompt` is counted as: its tokens, or one for an image."""
    return 1 if bundle.task(task).takes_images else TOKENS


def _text(ids: npt.NDArray[Any]) -> Inputs:
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def _shape(bundle: Bundle) -> tuple[int, int, int]:
    shape = read_image_model(bundle).shape
    if shape is None:
        raise ConfigError("expected a model whose configuration has num_channels and image_size, found none")
    return shape


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


def scores(
    bundle: Bundle, report: CompileReport | None, *, again: bool, progress: Progress
) -> tuple[list[TaskScore], str]:
    """Every task's score and where it comes from; nothing where the bundle has no held-out data and no report.

    Args:
        bundle: of the tasks.
        report: of its compile, if it has one.
        again: whether to measure, where the held-out data is on this machine.
        progress: of that.
    """
    stated = [entry.eval for entry in bundle.tasks.values()]
    if again and all(data is not None and held_out_file(bundle, data) is not None for data in stated):
        with Engine.from_pretrained(bundle.path, dtype=DTYPE) as engine:
            return measure(engine, bundle.tasks, progress), "this run"
    return (report.tasks, "the compile") if report is not None else ([], "")
