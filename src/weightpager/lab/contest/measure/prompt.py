"""What every method is asked for its first output: the same for all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from weightpager.answers.model import Inputs
from weightpager.backends.native.model_limits import ModelConfig
from weightpager.bundle import Bundle
from weightpager.errors import ConfigError
from weightpager.lab.contest.results.found import Source
from weightpager.readers.image_reader import read_image_model

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
