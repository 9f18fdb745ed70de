"""Images in, the pixels that a model takes out; a damaged or hostile image is an error and nothing more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from weightpager.errors import ConfigError, ImageError, first_line, shortened
from weightpager.machine.paths import has_file

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

FORMATS = ("BMP", "JPEG", "PNG", "PPM", "WEBP")
"""Others are rare, or read by programs that are no part of Pillow."""

MOST_PIXELS = 2**26
"""Of an image: a small file may ask for more memory than there is."""

MOST_OF_A_PATH = 400
"""That a message shows: data may hold images where it should name them."""

_MOST_RATIO = 32
"""Of an image's sides: a processor may scale the shorter one, and a strip would become a wall."""

_DEEP = ("I", "F")
"""What modes of more than 8 bits begin with: Pillow doesn't scale these, it cuts off."""

_ANY_SIZE = frozenset({"dinov2", "dinov2_with_registers", "segformer", "swin", "swinv2"})
"""Models that take images of any size: their configuration's is that of their training, 518 where DINOv2's processor
cuts to 224."""

_MOST_SIDE = 2**11
"""That a processor may scale to."""

_TRIAL = (24, 32)
"""Height and width of a blank image."""

_SIZES = ("size", "crop_size", "pad_size", "size_divisor")


class ImageReader:
    """An image processor of transformers, and what its model expects of it.

    Attributes:
        processor: whose own settings say how images are scaled and normalised.
        shape: channels, height and width that the model takes; of one that takes any size, what the processor makes of
            a square image. None if its configuration doesn't say.
    """

    def __init__(self, processor: Any, config: PretrainedConfig) -> None:
        """Try the processor: some of what is wrong with one shows only when it is used.

        Raises:
            Exception: whatever it raises about its settings.
            ValueError: it gives no finite pixels.
        """
        self.processor = processor
        self.shape = expected_shape(config)
        any_size = self.shape is not None and config.model_type in _ANY_SIZE
        channels, height, width = self.shape if self.shape is not None and any_size else (3, *_TRIAL)
        blank = _blank(processor, min(height, _MOST_SIDE), min(width, _MOST_SIDE))  # it may say anything
        if any_size:
            self.shape = channels, blank.shape[-2], blank.shape[-1]

    def read(self, source: Path | bytes, most_pixels: int = MOST_PIXELS) -> Tensor:
        """The pixels of a file, or of a file's content, float32 [channels, height, width].

        Raises:
            ImageError: there is no such file, it is no whole image, has too many pixels, or the processor makes
                something else of it than the model takes.
        """
        image = read_image(source, most_pixels)
        try:
            pixels = self.processor(images=image, return_tensors="pt")["pixel_values"]
        except Exception as error:
            raise ImageError(
                f"expected an image that the model's image processor takes: {first_line(error)}"
            ) from error
        shape = tuple(pixels.shape[1:])
        if not isinstance(pixels, Tensor) or len(pixels) != 1 or (self.shape is not None and shape != self.shape):
            wanted = "one image" if self.shape is None else f"pixels {list(self.shape)}, as the model takes"
            raise ImageError(f"expected {wanted}, the model's image processor gave {list(shape)}")
        return pixels[0].to(torch.float32)


def _blank(processor: Any, height: int, width: int) -> Tensor:
    from PIL import Image

    pixels = processor(images=Image.new("RGB", (width, height)), return_tensors="pt")["pixel_values"]
    if not isinstance(pixels, Tensor) or not pixels.isfinite().all():
        raise ValueError("expected finite pixels of a blank image, found others")
    return pixels


def read_image(source: Path | bytes, most_pixels: int = MOST_PIXELS) -> PilImage:
    """An image in RGB, turned as its camera says, as transformers' and datasets' own readers give it.

    Raises:
        ImageError: as `ImageReader.read`.
    """
    from PIL import ImageOps

    with _opened(source, most_pixels) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def pixel_count(source: Path | bytes, most_pixels: int = MOST_PIXELS) -> int:
    """How many pixels an image says that it has; none of them is read.

    Raises:
        ImageError: as `ImageReader.read`, as far as what comes before the pixels tells.
    """
    with _opened(source, most_pixels) as image:
        return image.width * image.height


@contextmanager
def _opened(source: Path | bytes, most_pixels: int) -> Iterator[PilImage]:
    """An image whose pixels may be read; whatever Pillow raises meanwhile is an `ImageError`."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(source, Path) and not has_file(source):  # a FIFO would be waited for
        raise ImageError(f"expected an image, found no file at {shortened(str(source), MOST_OF_A_PATH)}")
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            _check_size(image.width, image.height, most_pixels)
            if image.mode.startswith(_DEEP):
                raise ImageError(
                    f"expected 8 bits a channel, found mode {image.mode}, of which all above 255 would turn white; "
                    "scale its values to 0 to 255 and save it again"
                )
            yield image
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"expected an image ({', '.join(FORMATS)}), found something else") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"expected at most {most_pixels} pixels: {first_line(error)}") from error
    except Exception as error:
        raise ImageError(f"expected a whole image, found a damaged one: {first_line(error)}") from error


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
    if find_spec("PIL") is None:
        raise ConfigError("expected the package 'PIL', found none; install 'weightpager[images]' for tasks on images")
    from transformers import AutoImageProcessor  # takes more with it than a device needs that reads texts
    from transformers.image_processing_utils import BaseImageProcessor

    processor = AutoImageProcessor.from_pretrained(
        folder, config=config, local_files_only=True, trust_remote_code=False, backend="pil"
    )
    if not isinstance(processor, BaseImageProcessor):
        raise ValueError(f"expected an image processor, found {type(processor).__name__}")
    settings = processor.to_dict()
    sides = [side for key in _SIZES for side in _numbers(settings.get(key))]
    if any(not 0 < side <= _MOST_SIDE for side in sides):
        raise ValueError(f"expected sizes of 1 to {_MOST_SIDE}, found {max(sides)}")
    return processor


def _numbers(size: Any) -> list[int]:
    found = size.values() if isinstance(size, dict) else [size]
    return [int(side) for side in found if side is not None]


def expected_shape(config: PretrainedConfig) -> tuple[int, int, int] | None:
    """Channels, height and width of a model's images; None if its configuration doesn't say."""
    channels: Any = getattr(config, "num_channels", None)
    size: Any = getattr(config, "image_size", None)
    if channels is None or size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return channels, height, width


def _check_size(width: int, height: int, most: int) -> None:
    if not 0 < width * height <= most:
        raise ImageError(f"expected at most {most} pixels, found {width} × {height}")
    if max(width, height) > _MOST_RATIO * min(width, height):
        raise ImageError(f"expected sides of at most 1 : {_MOST_RATIO}, found {width} × {height}")
