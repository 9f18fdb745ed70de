"""What every method is asked for its first output: the same for all."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PretrainedConfig

from weightpager.answers.kinds import kind_of
from weightpager.backends.torch.model.architecture import read_config
from weightpager.backends.torch.model.image_processor import image_model
from weightpager.bundle import Bundle
from weightpager.errors import ConfigError

TOKENS = 32


def prompt(bundle: Bundle, task: str, seed: int) -> dict[str, Any]:
    """One text of random words, or one image of random pixels, as the task's module takes it.

    Raises:
        ConfigError: the model doesn't say how large its images are.
    """
    config, entry = read_config(bundle), bundle.task(task)
    drawn = torch.Generator().manual_seed(seed)
    if entry.takes_images:
        return {"pixel_values": torch.randn(1, *_shape(config), generator=drawn)}
    words = torch.randint(0, int(config.vocab_size), (1, TOKENS), generator=drawn)
    inputs: dict[str, Any] = {"input_ids": words, "attention_mask": torch.ones_like(words)}
    return inputs | {"use_cache": False} if kind_of(entry.kind).writes else inputs


def items(bundle: Bundle, task: str) -> int:
    """What `prompt` is counted as: its tokens, or one for an image."""
    return 1 if bundle.task(task).takes_images else TOKENS


def _shape(config: PretrainedConfig) -> tuple[int, int, int]:
    shape = image_model(config).shape
    if shape is None:
        raise ConfigError("expected a model whose configuration has num_channels and image_size, found none")
    return shape
