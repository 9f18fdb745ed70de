"""Images in data URLs, the pixels that a task reads out."""

from __future__ import annotations

import base64
import binascii
import re
import threading

from weightpager.engine.image_reader import ImageReader
from weightpager.errors import ImageError, RequestError
from weightpager.server.work import Look

MOST_PIXELS = 2**23
"""Of an image: more than a frame of 3840 × 2160, and little enough to be decoded for anybody who asks."""

_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.ASCII)


class ImageInputs:
    """A bundle's image processor, as requests need it.

    Safe to use from several threads. One image is decoded at a time, so that memory is bounded.
    """

    def __init__(self, reader: ImageReader) -> None:
        """Nothing is ever fetched: an image comes in the request."""
        self._reader = reader
        self._lock = threading.Lock()

    def look(self, url: str) -> Look:
        """An image of a classification task.

        Raises:
            RequestError: it is no data URL, or no image that the model takes.
        """
        start = _DATA_URL.match(url)
        if start is None:
            raise RequestError("expected an image as a data URL: data:image/png;base64,…", "input", "invalid_image")
        try:
            content = base64.b64decode(url[start.end() :], validate=True)
            with self._lock:
                return Look(self._reader.read(content, MOST_PIXELS))
        except binascii.Error as error:
            raise RequestError(f"expected base64 in the data URL: {error}", "input", "invalid_image") from error
        except ImageError as error:
            raise RequestError(str(error), "input", "invalid_image") from error
