"""Requests' images to pixels."""

from __future__ import annotations

from collections.abc import Sequence

from weightpager.answers.work import Work
from weightpager.bundle import TaskEntry
from weightpager.readers.image_reader import ImageReader
from weightpager.server.inputs.image_decoder import ImageDecoder, check_together
from weightpager.server.inputs.lanes import TwoLanes

_LARGE = 2**22
"""Pixels of a request that are much to read: more than two frames of 1920 × 1080."""


class ImageInputs:
    """Data URLs to pixels.

    Attributes:
        lanes: the lanes in which they are read.
    """

    vocabulary = None

    def __init__(self, reader: ImageReader, *, most: int) -> None:
        """``reader`` is the bundle's, ``most`` as of `TwoLanes`."""
        decoder = ImageDecoder(reader)
        self.lanes = TwoLanes(decoder, decoder.copy, most)

    async def works(self, task: TaskEntry, urls: Sequence[str]) -> list[Work]:  # noqa: ARG002 - all read images alike
        """A request's images; too many pixels are refused before any is read. Errors are those of `ImageDecoder`."""
        images = await self.lanes.run(ImageDecoder.open, urls)
        return await self.lanes.run(ImageDecoder.decode, images, large=check_together(images) > _LARGE)

    def close(self) -> None:
        """Read nothing any more."""
        self.lanes.close()
