"""Low-rank parts: a task's own correction ``B A`` to every paged weight, in memory whichever task is active."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from safetensors.numpy import save
from torch import Tensor, nn
from torch.nn.functional import linear

from weightpager.bundle import BundleWriter, TaskEntry
from weightpager.bundle.parts.adapter import LowRank, adapter_files, serialise
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.model.task_weights import TaskWeights
from weightpager.errors import CompileError


class LowRankParameters:
    """One task's low-rank parts while they are trained; rank 0 has none.

    They start as PEFT's do: A drawn, B zero, so that at first nothing is added.
    """

    def __init__(self, sparse: DenseModel, task: str, rank: int, seed: int) -> None:
        self._pairs: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        drawn = torch.Generator().manual_seed(seed)
        for info in sparse.paged if rank else ():
            device = sparse.linear(task, info.name).weight.device
            bound = 1 / math.sqrt(info.grid.in_features)
            down = (2 * torch.rand(rank, info.grid.in_features, generator=drawn) - 1) * bound
            up = torch.zeros(info.grid.out_features, rank)
            self._pairs[info.name] = nn.Parameter(down.to(device)), nn.Parameter(up.to(device))

    def parameters(self) -> dict[str, nn.Parameter]:
        """All of them, by name."""
        named: dict[str, nn.Parameter] = {}
        for name, (down, up) in self._pairs.items():
            named |= {f"{name}.lora_A": down, f"{name}.lora_B": up}
        return named

    def added(self, name: str, weight: Tensor) -> Tensor:
        """``weight [out_features, in_features]`` with this weight's part added; differentiable."""
        pair = self._pairs.get(name)
        return weight if pair is None else weight + pair[1] @ pair[0]

    def added_to(self, name: str, y: Tensor, x: Tensor) -> Tensor:
        """``y + x Aᵀ Bᵀ``: a layer's outputs y [..., out_features], and what its part makes of the inputs x."""
        pair = self._pairs.get(name)
        return y if pair is None else y + linear(linear(x, pair[0]), pair[1])

    def of(self, trained: Mapping[str, Tensor]) -> dict[str, LowRank]:
        """The parts by paged weight, of values that parameters of the same names were trained to."""
        return {
            name: LowRank(*(trained[f"{name}.lora_{part}"].detach().cpu().numpy() for part in "AB"))
            for name in self._pairs
        }


def check_rank(source: DenseModel, rank: int) -> None:
    """See before anything is trained that every paged weight can have parts of this rank.

    Raises:
        CompileError: one is too small.
    """
    for info in source.paged:
        if rank > min(info.grid.in_features, info.grid.out_features):
            shape = f"{info.grid.out_features} × {info.grid.in_features}"
            raise CompileError(f"recover.low_rank: expected at most the rank of {info.name}, {shape}; found {rank}")


def dense_part(parts: Mapping[str, LowRank], name: str) -> Tensor | float:
    """What is added to a paged weight, ``[out_features, in_features]``; 0 if nothing is."""
    part = parts.get(name)
    return 0.0 if part is None else torch.from_numpy(part.up @ part.down)


def write_adapters(writer: BundleWriter, weights: TaskWeights, tasks: tuple[TaskEntry, ...]) -> None:
    """Write the low-rank parts of the tasks that have any."""
    for task in tasks:
        parts = weights.low_rank.get(task.name)
        if not parts:
            continue
        config, arrays = serialise(parts, weights.source.models[task.name].base_model_prefix, task.kind)
        text, content = config.dump(), save(arrays, {"format": "pt"})
        for file, bytes_ in zip(adapter_files(task.name), (text, content), strict=True):
            writer.put(file, bytes_)
