"""`ThreadReader`: what reads inputs, one for each thread."""

from __future__ import annotations

import threading
from collections.abc import Callable

from weightpager.bundle import Bundle
from weightpager.readers.image_reader import ImageReader
from weightpager.readers.tokenizer import Tokenizer


class ThreadReader:
    """Keeps the calling thread's own reader, which was read once for a state of the bundle."""

    def __init__(self) -> None:
        self._own = threading.local()

    def of(self, bundle: Bundle, read: Callable[[], Tokenizer | ImageReader]) -> Tokenizer | ImageReader:
        """The reader of a bundle, which ``read`` opens where the bundle is new. Errors are those of opening it."""
        known, reader = getattr(self._own, "held", (None, None))
        if known is not bundle or reader is None:
            reader = read()
            self._own.held = bundle, reader
        return reader
