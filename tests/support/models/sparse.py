"""Models under masks that are drawn, and copies that may be trained."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np

from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.training.masks import Masks


def masks_of(source: DenseModel, density: float = 0.5, seed: int = 0) -> Masks:
    """Masks that keep about so many of each task's blocks."""
    random = np.random.default_rng(seed)
    tasks = tuple(source.models)
    return Masks(tasks, {info.name: random.random((info.grid.count, len(tasks))) < density for info in source.paged})


def copied(source: DenseModel) -> DenseModel:
    """The same model in other memory."""
    return replace(source, models=copy.deepcopy(source.models))
