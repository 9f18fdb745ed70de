"""Images, each of one class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from weightpager.answers.kinds.classification import Classification
from weightpager.answers.model import Inputs, TaskModel
from weightpager.answers.work import ClassifyImage
from weightpager.bundle import TaskEntry
from weightpager.errors import ImageError
from weightpager.readers.image_reader import ImageReader


class ImageClassification(Classification):
    """Finds an image's class."""

    def read(self, reader: ImageReader, task: TaskEntry, given: str, max_new_tokens: int) -> ClassifyImage:  # noqa: ARG002
        """The pixels of a file."""
        try:
            return ClassifyImage(reader.read(Path(given)))
        except ImageError as error:
            raise ImageError(f"{given}: {error}") from error

    def batch(self, model: TaskModel, tokenizer: Any, works: Sequence[ClassifyImage]) -> Inputs:  # noqa: ARG002
        """All pixels, float32 [images, channels, height, width]."""
        return {"pixel_values": np.stack([work.pixels for work in works])}


KIND = ImageClassification()
