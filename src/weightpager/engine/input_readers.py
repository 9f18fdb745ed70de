"""`InputReaders`: what reads a bundle's inputs, for many threads."""

from __future__ import annotations

import threading

from weightpager.backends.backend import Backend
from weightpager.bundle import Bundle
from weightpager.readers.image_reader import ImageReader
from weightpager.readers.tokenizer import Tokenizer


class InputReaders:
    """Opens readers of inputs. A tokenizer is read once for a state of the bundle, and copied from then on."""

    def __init__(self, backend: Backend) -> None:
        """Nothing is open.

        Args:
            backend: opens readers.
        """
        self._backend = backend
        self._lock = threading.Lock()  # of the first tokenizer
        self._first: tuple[Bundle | None, Tokenizer | None] = None, None
        self._own = threading.local()

    def new(self, bundle: Bundle) -> Tokenizer | ImageReader:
        """A reader for one thread at a time. Errors are those of `Backend.reader`."""
        with self._lock:
            known, first = self._first
            if known is bundle and first is not None:
                return first.copy()
            reader = self._backend.reader(bundle)
            if isinstance(reader, Tokenizer):
                self._first = bundle, reader.copy()
            return reader

    def own(self, bundle: Bundle) -> Tokenizer | ImageReader:
        """The calling thread's own reader, which it keeps. Errors are those of `new`."""
        known, reader = getattr(self._own, "held", (None, None))
        if known is not bundle or reader is None:
            reader = self.new(bundle)
            self._own.held = bundle, reader
        return reader
