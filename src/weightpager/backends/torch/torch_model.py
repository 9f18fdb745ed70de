"""`TorchModel`: what answers need of a task's torch module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from weightpager.answers.model import CacheSize, Floats, Inputs, PlacedFeatures, TaskModel
from weightpager.backends.torch.generation import TorchReading, bytes_per_token, floats, limits_of, without_cache
from weightpager.backends.torch.parameters import activation_dtype


class TorchModel(TaskModel):
    """A task's torch module, for answers.

    Nothing runs in torch's inference mode: in that, a compile that measures under autocast would cast every weight at
    every token.
    """

    def __init__(self, module: nn.Module) -> None:
        """``module`` is the task's, in evaluation mode."""
        self._module: Any = module
        self._once = without_cache(module)
        itemsize = activation_dtype(module.parameters()).itemsize
        self.limits = limits_of(module, itemsize)
        self.cache = CacheSize(bytes_per_token(module.config, itemsize) if self.limits.vocab_size else 0)
        named = getattr(getattr(module, "generation_config", None), "eos_token_id", None)
        ends = named if isinstance(named, list) else [named]
        self.eos_token_ids = frozenset(number for number in ends if number is not None)

    @torch.no_grad()
    def logits(self, inputs: Inputs) -> Floats:
        return floats(self._module(**self._placed(inputs), **self._once).logits)

    @torch.no_grad()
    def hidden(self, inputs: Inputs) -> Floats:
        base = self._module.base_model
        return floats(base(**self._placed(inputs), **without_cache(base)).last_hidden_state)

    def reading(self, texts: int, most: int | None, placed: PlacedFeatures | None = None) -> TorchReading:  # noqa: ARG002
        return TorchReading(self._module)

    def _placed(self, inputs: Inputs) -> dict[str, Tensor]:
        return {name: torch.from_numpy(array).to(self._module.device) for name, array in inputs.items()}
