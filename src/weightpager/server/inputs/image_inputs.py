"""Requests' images to pixels."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from weightpager.answers.work import ClassifyImage, Work
from weightpager.bundle import TaskEntry
from weightpager.errors import ImageError, RequestError
from weightpager.readers.image_reader import ImageReader, from_base64, pixel_count
from weightpager.server.inputs.lanes import TwoLanes

MOST_PIXELS = 2**23
"""Most pixels of an image: more than a frame of 3840 × 2160, and little enough to be decoded for anybody who asks."""

MOST_PIXELS_TOGETHER = 2**26
"""Most pixels of a request's images: eight such frames, or 128 of 640 × 480 and more."""

_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.ASCII)


@dataclass(frozen=True)
class EncodedImage:
    """An image whose pixels haven't been read: a file's content, and how many there are."""

    content: bytes = field(repr=False)
    pixels: int


class ImageDecoder:
    """A bundle's image processor, for images that requests bring; none is fetched. Each thread takes a copy."""

    def __init__(self, reader: ImageReader) -> None:
        self._reader = reader

    def copy(self) -> ImageDecoder:
        return ImageDecoder(copy.deepcopy(self._reader))

    def open(self, url: str) -> EncodedImage:
        """An image of a classification task; its pixels aren't read yet.

        Raises:
            RequestError: it is no data URL, no image, too large, or takes too long to be read.
        """
        start = _DATA_URL.match(url)
        if start is None:
            raise _refused("expected an image as a data URL: data:image/png;base64,…")
        try:
            content = from_base64(url[start.end() :], "base64 in the data URL")
            return EncodedImage(content, pixel_count(content, MOST_PIXELS))
        except ImageError as error:
            raise _refused(str(error)) from error

    def decode(self, image: EncodedImage) -> ClassifyImage:
        """Its pixels.

        Raises:
            RequestError: it is damaged, or no image that the model takes.
        """
        try:
            return ClassifyImage(self._reader.read(image.content, MOST_PIXELS))
        except ImageError as error:
            raise _refused(str(error)) from error


def check_together(images: list[EncodedImage]) -> int:
    """The pixels of a request's images.

    Raises:
        RequestError: they are too many.
    """
    pixels = sum(image.pixels for image in images)
    if pixels > MOST_PIXELS_TOGETHER:
        raise _refused(f"expected images of at most {MOST_PIXELS_TOGETHER} pixels together, found {pixels}")
    return pixels


def _refused(problem: str) -> RequestError:
    return RequestError(problem, "input", "invalid_image")


LARGE = 2**22
"""Pixels of a request that are much to read: more than two frames of 1920 × 1080."""


class ImageInputs:
    vocabulary = None

    def __init__(self, reader: ImageReader, *, most: int) -> None:
        decoder = ImageDecoder(reader)
        self.lanes = TwoLanes(decoder, decoder.copy, most)

    async def works(self, task: TaskEntry, urls: Sequence[str]) -> list[Work]:  # noqa: ARG002 - all read images alike
        """A request's images; too many pixels are refused before any is read. Errors are those of `ImageDecoder`."""
        images = await self.lanes.run(ImageDecoder.open, urls)
        return await self.lanes.run(ImageDecoder.decode, images, large=check_together(images) > LARGE)

    def close(self) -> None:
        self.lanes.close()
