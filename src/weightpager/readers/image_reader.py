"""`ImageReader`: images in, the pixels that a model takes out."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from weightpager.bundle import Bundle
from weightpager.bundle.format.names import MODEL
from weightpager.bundle.model_files import model_dir
from weightpager.bundle.settings import CONFIG, IMAGES
from weightpager.errors import BundleFormatError, ImageError, first_line, shortened
from weightpager.machine.packages import check_installed
from weightpager.machine.paths import has_file
from weightpager.readers.image_processor import MOST_RATIO, MOST_SIDE, ImageProcessor, Pixels

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

Frame = npt.NDArray[np.uint8]
"""An image in memory, as a camera gives it: RGB, [height, width, 3]."""

FORMATS = ("BMP", "JPEG", "PNG", "PPM", "WEBP")
"""Others are rare, or read by programs that are no part of Pillow."""

MOST_PIXELS = 2**26
"""Of an image: a small file may ask for more memory than there is."""

MOST_OF_A_PATH = 400
"""That a message shows: data may hold images where it should name them."""

_MOST_SCANS = 32
"""Most scans of a JPEG. Each goes over all pixels again: a camera's file has one scan, a progressive one ten."""

_MOST_PACKED_TEXTS = 16
"""Most compressed texts of a PNG. Each unpacks to as much as a mebibyte, whatever the image."""

_DEEP = ("I", "F")
"""What modes of more than 8 bits begin with: Pillow doesn't scale these, it cuts off."""


def read_image(source: Path | bytes | Frame, most_pixels: int = MOST_PIXELS) -> PilImage:
    """An image in RGB, turned as its camera says, as transformers' and datasets' own readers give it."""
    if isinstance(source, np.ndarray):
        return framed(source, most_pixels)
    from PIL import ImageOps

    with opened(source, most_pixels) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def pixel_count(source: Path | bytes, most_pixels: int = MOST_PIXELS) -> int:
    """How many pixels an image says that it has; none of them is read. Errors are those of `ImageReader.read`."""
    with opened(source, most_pixels) as image:
        return image.width * image.height


@contextmanager
def opened(source: Path | bytes | PilImage, most_pixels: int) -> Iterator[PilImage]:
    """An image whose pixels may be read; whatever Pillow raises meanwhile is an `ImageError`.

    One of Pillow's own is left open.
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(source, Path) and not has_file(source):  # a FIFO would be waited for
        raise ImageError(f"expected an image, found no file at {shortened(str(source), MOST_OF_A_PATH)}")
    try:
        with nullcontext(source) if isinstance(source, Image.Image) else _file(source) as image:
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
        expected = f"expected an image ({', '.join(FORMATS)})"
        raise ImageError(f"{expected}, found something else, or one without pixels") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"expected at most {most_pixels} pixels: {first_line(error)}") from error
    except Exception as error:
        raise ImageError(f"expected a whole image, found a damaged one: {first_line(error)}") from error


def _file(source: Path | bytes) -> PilImage:
    from PIL import Image

    return Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)


def check_effort(content: bytes) -> None:
    """Refuse images that take far more time than images of their size do. Raises `ImageError`."""
    if content[:2] in (b"P1", b"P2", b"P3"):  # Pillow's time grows with the square of the comments in these
        raise ImageError("expected an image in a binary form, found a PPM, PGM or PBM whose pixels are text")
    scans = content.count(b"\xff\xda") if content.startswith(b"\xff\xd8") else 0
    if scans > _MOST_SCANS:
        raise ImageError(f"expected a JPEG of at most {_MOST_SCANS} scans, found {scans}")
    if content.startswith(b"\x89PNG"):
        texts = content.count(b"zTXt") + content.count(b"iTXt")
        if texts > _MOST_PACKED_TEXTS:
            raise ImageError(f"expected a PNG with at most {_MOST_PACKED_TEXTS} compressed texts, found {texts}")


def from_base64(text: str, expected: str) -> bytes:
    """The content of a file, which isn't opened yet.

    Raises:
        ImageError: the text isn't what is expected, such as "base64 in the data URL"; or the file takes too long to be
            read.
    """
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError as error:  # not only binascii.Error: another one where a character isn't ASCII
        raise ImageError(f"expected {expected}: {error}") from error
    check_effort(content)
    return content


def framed(frame: Frame, most_pixels: int) -> PilImage:
    """An image of a frame. Errors are those of `ImageReader.read`."""
    from PIL import Image

    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        found = f"{frame.dtype} {list(frame.shape)}"
        raise ImageError(f"expected an array of uint8 [height, width, 3] in RGB, found {found}")
    height, width, _ = frame.shape
    _check_size(width, height, most_pixels)
    return Image.fromarray(frame)


def _check_size(width: int, height: int, most: int) -> None:
    if not (width and height):
        raise ImageError(f"expected a width and a height of at least 1 pixel, found {width} × {height}")
    if width * height > most:
        raise ImageError(f"expected at most {most} pixels, found {width} × {height}")
    if max(width, height) > MOST_RATIO * min(width, height):
        raise ImageError(f"expected sides of at most 1 : {MOST_RATIO}, found {width} × {height}")


ANY_SIZE = frozenset({"dinov2", "dinov2_with_registers", "segformer", "swin", "swinv2"})
"""Models that take images of any size: their configuration's is that of their training, 518 where DINOv2's processor
cuts to 224."""


@dataclass(frozen=True)
class ImageModel:
    """What a model's configuration says of the images that it takes; None is what it doesn't say."""

    type: str
    channels: int | None
    size: int | list[int] | None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ImageModel:
        return cls(str(config.get("model_type")), config.get("num_channels"), config.get("image_size"))

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
        any_size = self.shape is None or model.type in ANY_SIZE
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
    return ImageModel.of(_values(model_dir(bundle) / CONFIG))


def check_pillow() -> None:
    """Say what is missing before anything is read. Raises `ConfigError` if Pillow isn't installed."""
    check_installed("PIL", "images", "for tasks on images")


def _values(file: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(file.read_bytes()) if file.is_file() else {}
    return found


def _trials(model: ImageModel) -> Sequence[tuple[int, int]]:
    """Heights and widths of blank images, of which a processor makes one shape if it does of all images."""
    if model.shape is None or model.type not in ANY_SIZE:
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
