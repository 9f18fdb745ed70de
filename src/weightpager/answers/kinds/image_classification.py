"""Images, each of one class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from weightpager.answers.kinds.classification import Classification
from weightpager.answers.model import Inputs, TaskModel
from weightpager.answers.work import ClassifyImage
from weightpager.bundle import TaskEntry
from weightpager.readers.image_reader import Frame, ImageReader


class ImageClassification(Classification):
    """Finds an image's class."""

    def read(
        self,
        reader: ImageReader,
        task: TaskEntry,  # noqa: ARG002 - whichever
        given: str | os.PathLike[str] | bytes | Frame,
        max_new_tokens: int,  # noqa: ARG002
    ) -> ClassifyImage:
        """The pixels of a file, of a file's content, or of a frame."""
        return ClassifyImage(reader.read(Path(given) if isinstance(given, (str, os.PathLike)) else given))

    def batch(self, model: TaskModel, tokenizer: Any, works: Sequence[ClassifyImage]) -> Inputs:  # noqa: ARG002
        """All pixels, float32 [images, channels, height, width]."""
        return {"pixel_values": np.stack([work.pixels for work in works])}


KIND = ImageClassification()
