"""What tests of the engine share: the tiny assistant's bundle, and what its tasks give."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import weightpager as wp
from encoder_tasks import TASKS, logits
from weightpager.bundle import Bundle


@pytest.fixture(scope="module")
def expected(assistant_bundle: Path) -> dict[str, torch.Tensor]:
    """What an engine gives that reads pages straight into its arena, and does nothing else."""
    with wp.Engine.from_pretrained(assistant_bundle) as engine:
        return {task: logits(engine.activate(task)) for task in TASKS}


@pytest.fixture
def bundle(assistant_bundle: Path) -> Bundle:
    return Bundle.open(assistant_bundle)
