"""Images, opened with care: a damaged or hostile image is an error and nothing more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from weightpager.errors import ImageError, first_line, shortened
from weightpager.machine.paths import has_file

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

_MOST_RATIO = 32
"""Of an image's sides: a processor may scale the shorter one, and a strip would become a wall."""

_DEEP = ("I", "F")
"""What modes of more than 8 bits begin with: Pillow doesn't scale these, it cuts off."""


def read_image(source: Path | bytes | Frame, most_pixels: int = MOST_PIXELS) -> PilImage:
    """An image in RGB, turned as its camera says, as transformers' and datasets' own readers give it.

    Raises:
        ImageError: as `ImageReader.read`.
    """
    if isinstance(source, np.ndarray):
        return _framed(source, most_pixels)
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


def _framed(frame: Frame, most_pixels: int) -> PilImage:
    from PIL import Image

    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        found = f"{frame.dtype} {list(frame.shape)}"
        raise ImageError(f"expected an array of uint8 [height, width, 3] in RGB, found {found}")
    height, width, _ = frame.shape
    _check_size(width, height, most_pixels)
    return Image.fromarray(frame)


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
        expected = f"expected an image ({', '.join(FORMATS)})"
        raise ImageError(f"{expected}, found something else, or one without pixels") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"expected at most {most_pixels} pixels: {first_line(error)}") from error
    except Exception as error:
        raise ImageError(f"expected a whole image, found a damaged one: {first_line(error)}") from error


def _check_size(width: int, height: int, most: int) -> None:
    if not (width and height):
        raise ImageError(f"expected a width and a height of at least 1 pixel, found {width} × {height}")
    if width * height > most:
        raise ImageError(f"expected at most {most} pixels, found {width} × {height}")
    if max(width, height) > _MOST_RATIO * min(width, height):
        raise ImageError(f"expected sides of at most 1 : {_MOST_RATIO}, found {width} × {height}")
