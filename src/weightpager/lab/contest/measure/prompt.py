"""What every method is asked for its first output: the same for all."""

from __future__ import annotations

import numpy as np

from weightpager.answers.model import Inputs
from weightpager.backends.native.model_limits import ModelConfig
from weightpager.bundle import Bundle
from weightpager.errors import ConfigError
from weightpager.readers.image_reader import read_image_model

TOKENS = 32


def prompt(bundle: Bundle, task: str, seed: int) -> Inputs:
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
    ids = drawn.integers(0, words, (1, TOKENS), np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def items(bundle: Bundle, task: str) -> int:
    """What `prompt` is counted as: its tokens, or one for an image."""
    return 1 if bundle.task(task).takes_images else TOKENS


def _shape(bundle: Bundle) -> tuple[int, int, int]:
    shape = read_image_model(bundle).shape
    if shape is None:
        raise ConfigError("expected a model whose configuration has num_channels and image_size, found none")
    return shape
