"""`Batch`: what a model is trained on, and measured on, at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightpager.task_data.batches import Labelled


@dataclass(frozen=True)
class Batch:
    """Model inputs and labels.

    Texts are ``input_ids`` and ``attention_mask``, each ``[B, L]``; images are ``pixel_values``, ``[B, C, H, W]``.
    Labels are ``[B]`` where texts or images are classified, else ``[B, L]``. For language modeling they are the input
    ids, of completions alone where there are prompts; its `Kind` shifts them. Where prompts are to be answered,
    ``wanted`` has the answers, and labels mean nothing.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    wanted: tuple[str, ...] = ()

    @classmethod
    def of(cls, arrays: Labelled) -> Batch:
        """A batch over numpy's arrays, which aren't copied."""
        inputs, labels = arrays
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        if isinstance(labels, tuple):
            return cls(tensors, torch.zeros(len(labels), dtype=torch.long), labels)
        return cls(tensors, torch.from_numpy(labels))

    def arrays(self) -> Labelled:
        """The batch as numpy's arrays, not copied; its tensors must be on the CPU."""
        return {name: tensor.numpy() for name, tensor in self.inputs.items()}, self.wanted or self.labels.numpy()

    @property
    def items(self) -> int:
        """Texts, windows or images."""
        return len(self.labels)

    @property
    def tokens(self) -> Tensor | None:
        """Bool ``[B, L]``, False at padding; None for images, which have none."""
        mask = self.inputs.get("attention_mask")
        return None if mask is None else mask.bool()

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        return Batch(
            {name: tensor.to(device) for name, tensor in self.inputs.items()}, self.labels.to(device), self.wanted
        )
