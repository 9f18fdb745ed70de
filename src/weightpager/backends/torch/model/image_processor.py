"""Image processors of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PretrainedConfig

from weightpager.readers.image_processor import ImageProcessor, Pixels, check_sides
from weightpager.readers.image_reader import ImageModel, ImageReader, check_pillow

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage


class TransformersImageReader(ImageReader):
    """Reads images as an image processor of transformers does, and without it where an `ImageProcessor` does the same.

    Attributes:
        processor: of transformers.
    """

    def __init__(self, processor: Any, config: PretrainedConfig) -> None:
        """Try it; errors are those of `ImageReader`."""
        self.processor = processor
        super().__init__(self._through, image_model(config))
        self._process = ImageProcessor.of(processor.to_dict()) or self._through

    def _through(self, image: PilImage) -> Pixels:
        """What transformers makes of an image; whatever it raises goes through."""
        pixels = self.processor(images=image, return_tensors="np")["pixel_values"]
        if len(pixels) != 1:
            raise ValueError(f"expected one image, found {list(np.shape(pixels))}")
        return np.asarray(pixels[0], np.float32)


def image_model(config: PretrainedConfig) -> ImageModel:
    """What a configuration says of images."""
    channels, size = (getattr(config, name, None) for name in ("num_channels", "image_size"))
    return ImageModel(config.model_type, channels, size)


def load_image_processor(folder: Path, config: PretrainedConfig | None = None) -> Any:
    """A directory's image processor, which scales with Pillow wherever it runs: answers don't depend on the machine.

    Whatever transformers raises about the directory's files goes through.

    Args:
        folder: the directory.
        config: of its model; read if None.

    Raises:
        ConfigError: Pillow isn't installed.
        ValueError: it scales to absurd sizes, or is no image processor.
    """
    check_pillow()
    from transformers import AutoImageProcessor  # takes more with it than a device needs that reads texts
    from transformers.image_processing_utils import BaseImageProcessor

    processor = AutoImageProcessor.from_pretrained(
        folder, config=config, local_files_only=True, trust_remote_code=False, backend="pil"
    )
    if not isinstance(processor, BaseImageProcessor):
        raise ValueError(f"expected an image processor, found {type(processor).__name__}")
    check_sides(processor.to_dict())
    return processor
