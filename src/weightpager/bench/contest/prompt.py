"""What every method is asked for its first output: the same for all."""

from __future__ import annotations

from typing import Any

import torch

from weightpager.bundle import Bundle
from weightpager.engine.architecture import read_config

TOKENS = 32


def prompt(bundle: Bundle, task: str, seed: int) -> dict[str, Any]:
    """One text of random words, as the task's module takes it."""
    words = int(read_config(bundle).vocab_size)
    drawn = torch.randint(0, words, (1, TOKENS), generator=torch.Generator().manual_seed(seed))
    inputs: dict[str, Any] = {"input_ids": drawn, "attention_mask": torch.ones_like(drawn)}
    return inputs | {"use_cache": False} if bundle.task(task).kind == "language-modeling" else inputs
