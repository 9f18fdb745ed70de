"""Texts in, the token ids that a task reads out."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from typing import Any

from weightpager.answers.word_pieces import word_starts
from weightpager.answers.work import Classify, Ids, Tag
from weightpager.bundle.format.names import MODEL
from weightpager.errors import BundleFormatError, RequestError


class Vocabulary:
    """A bundle's tokenizer, as requests need it. Safe to use from several threads: a fast tokenizer itself isn't.

    Attributes:
        context: tokens that the model can read, prompt and continuation together.
        together: tokens that texts which run together may take: what the model can read, or less where a longer text
            changes how it reads the others.
        size: token ids are below it.
    """

    def __init__(
        self, tokenizer: Any, size: int, context: int, room: int | None = None, together: int | None = None
    ) -> None:
        """Any text is read.

        Args:
            tokenizer: that nobody else uses.
            size: token ids are below it.
            context: tokens that the model can read.
            room: tokens that one text's cache may hold; None for any number. May be set anew.
            together: tokens up to which a text doesn't change how others are read; None for any number.
        """
        self.most_cached = room
        self.context = context
        self.together = min(context, together or context)
        self.size = size
        self._tokenizer = tokenizer
        self._lock = threading.Lock()

    def copy(self) -> Vocabulary:
        """One with a tokenizer of its own, so that who reads a long text with it is waited for by nobody."""
        with self._lock:
            tokenizer = copy.deepcopy(self._tokenizer)
        return Vocabulary(tokenizer, self.size, self.context, self.most_cached, self.together)

    def classify(self, text: str, max_length: int | None) -> Classify:
        """A text of a classification task, cut where the task was compiled to cut.

        Raises:
            RequestError: there is nothing to read.
        """
        ids = self._ids(text, truncation=True, max_length=max_length)
        if not ids:
            raise _empty("input")
        return Classify(ids)

    def tag(self, text: str, max_length: int | None) -> Tag:
        """A text of a token task, split at blanks.

        Raises:
            RequestError: there is nothing to read.
        """
        words = text.split()
        options = {"truncation": True, "max_length": max_length, "return_offsets_mapping": True}
        with self._lock:
            encoded = self._tokenizer(" ".join(words), **options)
        ids = self._known(encoded["input_ids"])
        if not ids:
            raise _empty("input")
        return Tag(ids, tuple(words), tuple(word_starts(words, encoded["offset_mapping"])))

    def embed(self, text: str) -> Ids:
        """A text whose vector is wanted, never cut.

        Raises:
            RequestError: the model can't read that much.
        """
        ids = self._ids(text)
        if len(ids) > self.context:
            raise self._too_long("input", len(ids))
        return ids

    def prompt(self, text: str) -> Ids:
        """A text that is to be continued, as it is."""
        return self._ids(text, add_special_tokens=False)

    def checked(self, ids: Sequence[int], param: str) -> Ids:
        """Token ids that a client sends itself.

        Raises:
            RequestError: the model has no such tokens.
        """
        if not all(0 <= number < self.size for number in ids):
            raise RequestError(f"expected token ids from 0 to {self.size - 1}", param)
        return tuple(ids)

    def room(self, ids: Ids, wanted: int | None, most: int, param: str) -> int:
        """How many tokens a continuation may have.

        Args:
            ids: of the prompt.
            wanted: by the client; as many as there is room for if None.
            most: that the server allows.
            param: the field that the prompt came in.

        Raises:
            RequestError: there is no prompt, or no room for what is wanted.
        """
        if not ids:
            raise _empty(param)
        limit = self.context if self.most_cached is None else min(self.context, self.most_cached)
        left = limit - len(ids)
        if left < (wanted or 1):
            raise self._too_long(param, len(ids), wanted or 1, limit)
        return min(wanted or left, most)

    def _ids(self, text: str, **options: Any) -> Ids:
        with self._lock:
            return self._known(self._tokenizer(text, **options)["input_ids"])

    def _known(self, ids: Sequence[int]) -> Ids:
        """Here, so that nobody else's texts fail with one that the model can't read."""
        if max(ids, default=0) >= self.size:
            raise BundleFormatError(f"{MODEL}/", "tokenizer", f"ids below {self.size}, as the model has", "larger ones")
        return tuple(ids)

    def _too_long(self, param: str, found: int, wanted: int = 0, limit: int | None = None) -> RequestError:
        more = f" and {wanted} to be generated" if wanted else ""
        what = "model can read" if limit in (None, self.context) else "server's --kv-reserve holds"
        return RequestError(
            f"expected at most {limit or self.context} tokens, as the {what}, found {found}{more}",
            param,
            "context_length_exceeded",
        )


def _empty(param: str) -> RequestError:
    return RequestError("expected at least one token, found an empty text", param)
