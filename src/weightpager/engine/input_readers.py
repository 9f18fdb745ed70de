"""`InputReaders`: what reads a bundle's inputs, for many threads."""

from __future__ import annotations

import threading
from typing import Any

from weightpager.backends.backend import Backend
from weightpager.bundle import Bundle, TaskEntry
from weightpager.bundle.reader import read_manifest
from weightpager.errors import BundleError, BundleFormatError
from weightpager.machine.packages import needing_torch
from weightpager.readers.chat_template import MOST_CHARACTERS, ChatTemplate
from weightpager.readers.image_reader import ImageReader
from weightpager.readers.tokenizer import Tokenizer, open_tokenizer


class InputReaders:
    """Opens readers of inputs. A tokenizer is read once for a state of the bundle, and copied from then on.

    Attributes:
        backend: opens readers.
    """

    def __init__(self, backend: Backend) -> None:
        """Nothing is open."""
        self.backend = backend
        self._lock = threading.Lock()  # of the first tokenizer, and of the templates
        self._first: tuple[Bundle | None, Tokenizer | None] = None, None
        self._own = threading.local()
        self._templates: dict[tuple[str | None, frozenset[tuple[str, str]], str | None], ChatTemplate] = {}

    def new(self, bundle: Bundle) -> Tokenizer | ImageReader:
        """A reader for one thread at a time.

        Errors are those of `Backend.reader`, or a `BundleError` if the bundle has been replaced meanwhile.
        """
        with self._lock:
            known, first = self._first
            if known is bundle and first is not None:
                return first.copy()
            try:
                reader = self.backend.reader(bundle)
            except BundleFormatError as error:
                if _replaced(bundle):
                    raise BundleError(
                        f"{bundle.path}: expected the bundle as it was opened, found another one in its place; call "
                        "engine.reload(), or open it again"
                    ) from error
                raise
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

    def tokenizer(self, bundle: Bundle) -> Any:
        """What `Engine.tokenizer` gives. Errors are those of that."""
        if self.backend.name == "native":
            reader = None if bundle.takes_images else self.new(bundle)
            return reader if isinstance(reader, Tokenizer) else open_tokenizer(bundle)  # which says what is wrong
        from weightpager.backends.torch import architecture

        return architecture.tokenizer(bundle)

    def template(self, bundle: Bundle, task: TaskEntry) -> ChatTemplate | None:
        """The chat template of a bundle whose tasks read texts, for all threads. Errors are those of `new`.

        None for a task whose prompts are no conversations. Its process starts with the first conversation. One that
        another bundle had is kept, as a thread may still use it.
        """
        if not task.takes_conversations:
            return None
        tokenizer = self.own(bundle)
        assert isinstance(tokenizer, Tokenizer)
        placeholder = None if tokenizer.pictures is None else tokenizer.pictures.pictures.token
        key = tokenizer.chat_template, frozenset(tokenizer.special.items()), placeholder
        with self._lock:
            return self._templates.setdefault(key, ChatTemplate.of(tokenizer, MOST_CHARACTERS))

    def close(self) -> None:
        """End the processes of templates."""
        with self._lock:
            templates = list(self._templates.values())
        for template in templates:
            template.close()


def image_processor(bundle: Bundle) -> Any:
    """What `Engine.image_processor` gives. Errors are those of that."""
    with needing_torch("for transformers' own image processor"):
        from weightpager.backends.torch import architecture

    return architecture.image_reader(bundle).processor


def _replaced(bundle: Bundle) -> bool:
    """Whether another bundle, and a sound one as far as a manifest tells, lies where this one was."""
    try:
        return read_manifest(bundle.path) != bundle.manifest
    except BundleFormatError:
        return False
