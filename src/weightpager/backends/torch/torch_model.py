"""`TorchModel`: what answers need of a task's torch module."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from weightpager.answers.model import (
    OF_GRIDS,
    CacheSize,
    Floats,
    Grids,
    Inputs,
    PlacedFeatures,
    TaskModel,
    parts_of,
    picture_features,
    positions,
)
from weightpager.backends.torch.architecture import has_picture_tower, takes_patches
from weightpager.backends.torch.generation import TorchReading, bytes_per_token, floats, limits_of, without_cache
from weightpager.backends.torch.parameters import activation_dtype
from weightpager.backends.torch.pictures import features_of, with_features
from weightpager.bundle.format.manifest import Pictures


class TorchModel(TaskModel):
    """A task's torch module, for answers.

    Nothing runs in torch's inference mode: in that, a compile that measures under autocast would cast every weight at
    every token.
    """

    def __init__(self, module: nn.Module, pictures: Pictures | None = None) -> None:
        """``module`` is the task's, in evaluation mode; ``pictures`` says how they stand in its texts."""
        self._module: Any = module
        self._once = without_cache(module)
        self._dtype = activation_dtype(module.parameters())
        itemsize = self._dtype.itemsize
        self.limits = limits_of(module, itemsize, pictures)
        self.cache = CacheSize(bytes_per_token(module.config, itemsize) if self.limits.vocab_size else 0)
        named = getattr(getattr(module, "generation_config", None), "eos_token_id", None)
        ends = named if isinstance(named, list) else [named]
        self.eos_token_ids = frozenset(number for number in ends if number is not None)

    @torch.no_grad()
    def logits(self, inputs: Inputs) -> Floats:
        return floats(self._module(**self._given(inputs), **self._once).logits)

    @torch.no_grad()
    def hidden(self, inputs: Inputs) -> Floats:
        base = self._module.base_model
        return floats(base(**self._given(inputs), **without_cache(base)).last_hidden_state)

    @torch.no_grad()
    def features(self, pixels: Floats, grids: Grids | None = None) -> Floats | list[Floats]:
        """As the interface has it. Raises `TypeError` if the model reads no pictures among its words."""
        if not has_picture_tower(self._module.config):
            return super().features(pixels, grids)
        found = [
            floats(features_of(self._module, self._tensor(part).to(self._dtype), grid))
            for part, grid in parts_of(pixels, grids)
        ]
        return np.concatenate(found) if grids is None else found

    def reading(self, texts: int, most: int | None, placed: PlacedFeatures | None = None) -> TorchReading:  # noqa: ARG002
        return TorchReading(self._module, placed)

    def _given(self, inputs: Inputs) -> dict[str, Tensor]:
        """A call's arguments; pictures among words stand there already."""
        config, left = self._module.config, dict(inputs)
        if not has_picture_tower(config):
            return {name: self._tensor(array) for name, array in left.items()}
        pixels = left.pop("pixel_values", None)
        for name in OF_GRIDS:
            left.pop(name, None)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        given = {name: self._tensor(array) for name, array in left.items()}
        placed = None
        if pixels is not None and len(pixels):
            assert self.limits.pictures is not None
            seen = picture_features(inputs, self.limits.pictures, self.features)
            placed = PlacedFeatures.of(ids, mask, config.image_token_id, *seen)
        if takes_patches(config):  # else it would number them by what it has read before
            given["position_ids"] = self._tensor(positions(mask, None if placed is None else placed.positions))
        if placed is None:
            return given
        words, rows, index = given.pop("input_ids"), self._tensor(placed.rows), self._tensor(placed.index)
        return {**given, "inputs_embeds": with_features(self._module, words, rows, index)}

    def _tensor(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._module.device)
