"""`ThreadReader`: what reads inputs, one for each thread."""

from __future__ import annotations

import threading
from collections.abc import Callable

from weightpager.bundle import Bundle
from weightpager.readers.image_reader import ImageReader
from weightpager.readers.tokenizer import Tokenizer


class ThreadReader:
    """Keeps the calling thread's own reader, which was read once for a state of the bundle."""

    def __init__(self, read: Callable[[], Tokenizer | ImageReader]) -> None:
        """``read`` opens one."""
        self._read = read
        self._own = threading.local()

    def of(self, bundle: Bundle) -> Tokenizer | ImageReader:
        """That of a bundle; errors are those of opening it."""
        known, reader = getattr(self._own, "held", (None, None))
        if known is not bundle or reader is None:
            reader = self._read()
            self._own.held = bundle, reader
        return reader
