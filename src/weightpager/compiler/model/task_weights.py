"""The values of each task's paged weights, and which tasks share which block's values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from weightpager.bundle.format.low_rank import LowRank
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.model.own_weights import SHARED, Versions
from weightpager.compiler.model.paged_weights import PagedWeightInfo


@dataclass(frozen=True)
class PrivateBlocks:
    """Blocks of one paged weight that one task has values of its own for.

    Attributes:
        blocks: int64 [N], indices in the weight's grid, row-major.
        values: float32 [N, block rows, block cols]; what lies outside the weight is zero.
    """

    blocks: npt.NDArray[np.int64]
    values: Tensor


@dataclass(frozen=True)
class TaskWeights:
    """The weights of a source's modules, with private blocks laid over them by task and paged weight.

    Attributes:
        low_rank: what is added to a weight beside the pages, by task and paged weight.
    """

    source: DenseModel
    private: Mapping[str, Mapping[str, PrivateBlocks]] = field(default_factory=dict)
    low_rank: Mapping[str, Mapping[str, LowRank]] = field(default_factory=dict)

    def alone(self, task: str) -> TaskWeights:
        """The weights of one task; they can't tell `versions`."""
        private = {task: self.private[task]} if task in self.private else {}
        low_rank = {task: self.low_rank[task]} if task in self.low_rank else {}
        return TaskWeights(self.source.alone(task), private, low_rank)

    def weight(self, task: str, info: PagedWeightInfo) -> Tensor:
        """A task's values ``[out_features, in_features]``, float32. Not to be written to."""
        shared = self.source.linear(task, info.name).weight.detach()
        private = self.private.get(task, {}).get(info.name)
        if private is None or not len(private.blocks):
            return shared
        cut = info.grid.cut(shared.numpy())  # [rows, cols, BH, BW], a copy
        cut[np.divmod(private.blocks, info.grid.cols)] = private.values.numpy()
        return torch.from_numpy(info.grid.join(cut))

    def versions(self, info: PagedWeightInfo) -> Versions:
        """Which tasks share values: equal numbers in ``[blocks, tasks]``."""
        tasks = list(self.source.models)
        shared = np.full((info.grid.count, len(tasks)), SHARED, np.int8)
        versions: Versions = self.source.versions.get(info.name, shared).copy()
        for number, task in enumerate(tasks):
            private = self.private.get(task, {}).get(info.name)
            if private is not None:
                versions[private.blocks, number] = len(tasks) + number
        return versions
