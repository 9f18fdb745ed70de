"""Texts of any tokens, and what an engine says to them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.serving.clients import Answers, Ids
from weightpager.backends.torch.architecture import read_config
from weightpager.bundle import Bundle
from weightpager.engine import Engine

TEXTS = 24


def made_texts(bundle: Bundle, drawn: random.Random) -> list[Ids]:
    """Made of any tokens, some short, some long."""
    words = int(read_config(bundle).get_text_config().vocab_size)
    return [tuple(drawn.choices(range(words), k=drawn.randint(4, 48))) for _ in range(TEXTS)]


def right_answers(bundle: Bundle, texts: Sequence[Ids]) -> Answers:
    """What an engine that has all memory says to each text alone."""
    found = {}
    with Engine.from_pretrained(bundle.path, backend="torch") as engine, torch.inference_mode():
        for task in bundle.tasks:
            with engine.task(task) as module:
                base: Any = module.base_model
                for text in texts:
                    hidden = base(input_ids=torch.tensor([text])).last_hidden_state
                    found[task, text] = hidden[0].float().mean(0).tolist()
    return found
