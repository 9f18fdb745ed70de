"""Texts in, the token ids that a task reads out."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from weightpager.answers.grammar import Grammars
from weightpager.answers.work import Ids
from weightpager.bundle import TaskEntry
from weightpager.bundle.format.names import MODEL
from weightpager.errors import BundleFormatError
from weightpager.readers.picture_reader import PictureSource
from weightpager.readers.tokenizer import ANY_LENGTH, Encoded, Tokenizer

Conversation = Sequence[Mapping[str, Any]]
"""Messages, each with a ``role`` and its ``content``."""


@dataclass(frozen=True)
class PicturePrompt:
    """What a task is asked about: words with pictures among them.

    Attributes:
        text: has a placeholder (``<image>``, say) where each picture stands, or none: then they stand in front of it.
            Of a conversation they stand where a message's part is an image, or in front of the first message of a user.
        pictures: in the order of their places: files' paths or data URLs, contents of files, arrays of uint8
            [height, width, 3] in RGB, or images of Pillow.
    """

    text: str | Conversation
    pictures: Sequence[PictureSource] = field(repr=False)


_Reader = TypeVar("_Reader", bound="TokenReader")


class TokenReader:
    """A bundle's tokenizer, as inputs need it. Safe to use from several threads: a tokenizer itself isn't.

    All methods raise a `BundleFormatError` where the tokenizer knows words that the model doesn't.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """``tokenizer`` is this reader's alone; the model's token ids are below ``vocab_size``."""
        self.vocab_size = vocab_size
        self._tokenizer = tokenizer
        self._lock = threading.Lock()

    def copy(self: _Reader) -> _Reader:
        """A reader with a tokenizer of its own, so that nobody waits while it reads a long text."""
        reader = copy.copy(self)
        reader._lock = threading.Lock()
        with self._lock:
            reader._tokenizer = self._tokenizer.copy()
        return reader

    def grammars(self) -> Grammars:
        """What compiles schemas, for one thread. Errors are those of `Grammars`."""
        with self._lock:
            tokenizer = self._tokenizer.copy()
        return Grammars(tokenizer, self.vocab_size)

    def whole(self, text: str) -> Ids:
        """A text, as it is trained with, never cut."""
        return self._read(text).ids

    def cut(self, text: str, max_length: int | None) -> Encoded:
        """A text of so many tokens at most, special ones included."""
        return self._read(text, most=self._most(max_length))

    def cut_words(self, words: Sequence[str], max_length: int | None) -> tuple[Encoded, tuple[int | None, ...]]:
        """Words in a row, cut likewise; and the word that each token begins, None if it begins none."""
        encoded = self.cut(" ".join(words), max_length)
        return encoded, tuple(word_starts(words, encoded.spans))

    def prompt(self, text: str, task: TaskEntry, *, chat: bool = False, pictures: int = 0) -> Ids:
        """A text that a task continues; ``chat`` and ``pictures`` as of `Tokenizer.prompt`, and so are errors."""
        with self._lock:
            ids = self._tokenizer.prompt(text, bos=task.add_bos_token, chat=chat, pictures=pictures)
        return self._checked(ids)

    def _most(self, max_length: int | None) -> int | None:
        longest = self._tokenizer.longest
        return max_length or (None if longest == ANY_LENGTH else longest)

    def _read(self, text: str, *, most: int | None = None) -> Encoded:
        with self._lock:
            encoded = self._tokenizer.encode(text, most=most)
        self._checked(encoded.ids)
        return encoded

    def _checked(self, ids: Ids) -> Ids:
        """Checked here, so that nobody else's texts fail with one that the model can't read."""
        check_ids(ids, self.vocab_size)
        return ids


def check_ids(ids: Sequence[int], vocab_size: int) -> None:
    """See that a model has such tokens: its ids are below ``vocab_size``. Raises `BundleFormatError` otherwise."""
    if max(ids, default=0) >= vocab_size:
        raise BundleFormatError(f"{MODEL}/", "tokenizer", f"ids below {vocab_size}, as the model has", "larger ones")


def word_starts(words: Sequence[str], spans: Sequence[tuple[int, int]]) -> list[int | None]:
    """The word that each piece begins, by number; None for a piece inside of a word.

    ``spans`` are the pieces' characters in the words joined by blanks. Byte-level tokenizers refuse words that are
    split already, and some count a blank to the piece after it: so a piece belongs to the word of its last character.
    """
    owner: list[int | None] = []
    for number, word in enumerate(words):
        owner += [number] * len(word) + [None]
    starts: list[int | None] = []
    last = None
    for start, end in spans:
        word_number = owner[end - 1] if end > start else None
        starts.append(None if word_number == last else word_number)
        last = last if word_number is None else word_number
    return starts
