"""`ImageReader`: images in, the pixels that a model takes out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from weightpager.bundle import Bundle
from weightpager.bundle.format.names import MODEL
from weightpager.bundle.parts.model_files import model_dir
from weightpager.bundle.settings.checks import CONFIG, IMAGES
from weightpager.errors import BundleFormatError, ImageError, first_line
from weightpager.machine.packages import check_installed
from weightpager.readers.image_file import MOST_PIXELS, Frame, read_image
from weightpager.readers.image_processor import MOST_SIDE, ImageProcessor, Pixels

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

_ANY_SIZE = frozenset({"dinov2", "dinov2_with_registers", "segformer", "swin", "swinv2"})
"""Models that take images of any size: their configuration's is that of their training, 518 where DINOv2's processor
cuts to 224."""


@dataclass(frozen=True)
class ImageModel:
    """What a model's configuration says of the images that it takes; None is what it doesn't say."""

    type: str
    channels: int | None
    size: int | list[int] | None

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """Channels, height and width; None if the configuration doesn't say."""
        if self.channels is None or self.size is None:
            return None
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        return self.channels, height, width


class ImageReader:
    """An image processor, and what its model expects of it.

    Attributes:
        shape: channels, height and width that the model takes; of one that takes any size, what the processor makes of
            a square image. If its configuration doesn't say, what the processor makes of any image; None if its size
            depends on the image's.
    """

    def __init__(self, process: Callable[[PilImage], Pixels], model: ImageModel) -> None:
        """Try the processor: some of what is wrong with one shows only when it is used.

        Args:
            process: gives the pixels of an image in RGB.
            model: that takes them.

        Raises:
            Exception: whatever it raises about its settings.
            ValueError: it gives no finite pixels, or not of one image.
        """
        self._process = process
        self.shape = model.shape
        any_size = self.shape is None or model.type in _ANY_SIZE
        made = {_blank(process, height, width).shape for height, width in _trials(model)}
        if any_size and len(made) == 1:
            ((channels, height, width),) = made
            self.shape = model.channels or channels, height, width

    def read(self, source: Path | bytes | Frame, most_pixels: int = MOST_PIXELS) -> Pixels:
        """The pixels of a file, of a file's content or of a frame, float32 [channels, height, width].

        Raises:
            ImageError: there is no such file, it is no whole image, has too many pixels, or the processor makes
                something else of it than the model takes.
        """
        image = read_image(source, most_pixels)
        try:
            pixels = self._process(image)
        except Exception as error:
            raise ImageError(
                f"expected an image that the model's image processor takes: {first_line(error)}"
            ) from error
        if pixels.ndim != 3 or (self.shape is not None and pixels.shape != self.shape):
            wanted = "one image" if self.shape is None else f"pixels {list(self.shape)}, as the model takes"
            raise ImageError(f"expected {wanted}, the model's image processor gave {list(pixels.shape)}")
        return pixels


def open_image_reader(bundle: Bundle) -> ImageReader | None:
    """What reads a bundle's images, from its own files only; None if its processor does more than `ImageProcessor`.

    Raises:
        BundleFormatError: the tasks read texts, or the files are damaged.
        ConfigError: Pillow isn't installed.
    """
    if not bundle.takes_images:
        raise BundleFormatError(f"{MODEL}/", "image processor", "one", "none: the tasks read texts")
    folder = model_dir(bundle)
    check_pillow()
    try:
        processor = ImageProcessor.of(_values(folder / IMAGES))
        return None if processor is None else ImageReader(processor, read_image_model(bundle))
    except Exception as error:
        raise BundleFormatError(f"{MODEL}/{IMAGES}", "content", "an image processor that works", error) from error


def read_image_model(bundle: Bundle) -> ImageModel:
    """What a bundle's configuration says of the images that its model takes."""
    config = _values(model_dir(bundle) / CONFIG)
    return ImageModel(str(config.get("model_type")), config.get("num_channels"), config.get("image_size"))


def check_pillow() -> None:
    """Say what is missing before anything is read.

    Raises:
        ConfigError: Pillow isn't installed.
    """
    check_installed("PIL", "images", "for tasks on images")


def _values(file: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(file.read_bytes()) if file.is_file() else {}
    return found


def _trials(model: ImageModel) -> Sequence[tuple[int, int]]:
    """Heights and widths of blank images, of which a processor makes one shape if it does of all images."""
    if model.shape is None or model.type not in _ANY_SIZE:
        return (24, 32), (32, 24)
    _, height, width = model.shape
    return ((min(height, MOST_SIDE), min(width, MOST_SIDE)),)  # it may say anything


def _blank(process: Callable[[PilImage], Pixels], height: int, width: int) -> Pixels:
    from PIL import Image

    pixels = process(Image.new("RGB", (width, height)))
    if pixels.ndim != 3:
        raise ValueError(f"expected pixels [channels, height, width] of a blank image, found {list(pixels.shape)}")
    if not np.isfinite(pixels).all():
        raise ValueError("expected finite pixels of a blank image, found others")
    return pixels
