"""Images, each of one class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from weightpager.answers.kinds.classification import Classification
from weightpager.answers.work import Look
from weightpager.bundle import TaskEntry
from weightpager.errors import ImageError
from weightpager.readers.image_reader import ImageReader


class ImageClassification(Classification):
    """Finds an image's class."""

    def read(self, reader: ImageReader, task: TaskEntry, given: str, max_new_tokens: int) -> Look:  # noqa: ARG002
        """The pixels of a file."""
        try:
            return Look(reader.read(Path(given)))
        except ImageError as error:
            raise ImageError(f"{given}: {error}") from error

    def batch(self, module: nn.Module, tokenizer: Any, works: Sequence[Look]) -> dict[str, Tensor]:  # noqa: ARG002
        """All pixels, float32 [images, channels, height, width]."""
        device: Any = module.device
        return {"pixel_values": torch.from_numpy(np.stack([work.pixels for work in works])).to(device)}


KIND = ImageClassification()
