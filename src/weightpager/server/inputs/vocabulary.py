"""Texts and token ids of requests, and how long they may be."""

from __future__ import annotations

from collections.abc import Sequence

from weightpager.answers.model import ModelLimits
from weightpager.answers.token_reader import TokenReader
from weightpager.answers.work import Ids, continuation
from weightpager.bundle import TaskEntry
from weightpager.errors import ImageError, RequestError
from weightpager.readers.tokenizer import Tokenizer


class Vocabulary(TokenReader):
    """A bundle's tokenizer, and how much a request may have read by it.

    Attributes:
        context: number of tokens that the model can read, prompt and continuation together.
        uniform_length: length up to which a text doesn't change how others of its batch are read: what the model can
            read, or less.
    """

    def __init__(self, tokenizer: Tokenizer, limits: ModelLimits, room: int | None = None) -> None:
        """The tokenizer is nobody else's. ``room`` is for tokens of one text's cache; None for any number."""
        super().__init__(tokenizer, limits.vocab_size)
        self.most_cached = room
        self.context = limits.room(tokenizer.longest)
        self.uniform_length = limits.uniform_room(tokenizer.longest)

    def embed(self, given: str | Sequence[int]) -> Ids:
        """A text whose vector is wanted, or token ids in its place; never cut.

        Raises:
            RequestError: there is nothing to read, the model can't read that much, or it has no such tokens.
        """
        ids = self.whole(given) if isinstance(given, str) else self.checked(given, "input")
        if not ids:
            raise empty("input")
        if len(ids) > self.context:
            raise self._too_long("input", len(ids), self.context)
        return ids

    def check_kept(self, ids: Ids, param: str) -> None:
        """See that a cache may hold a whole text.

        Raises:
            RequestError: the text is too long.
        """
        if self.most_cached is not None and len(ids) > self.most_cached:
            raise self._too_long(param, len(ids), self.most_cached)

    def prompt_with(self, text: str, task: TaskEntry, pictures: int, param: str, *, chat: bool = False) -> Ids:
        """A prompt in which so many pictures stand; ``chat`` as of `TokenReader.prompt`.

        Raises:
            RequestError: the text has another number of placeholders, or there is no room for so many pictures.
        """
        reader = self._tokenizer.pictures
        try:
            if pictures and reader is not None:
                reader.check_number(pictures, self.context)
            return self.prompt(text, task, chat=chat, pictures=pictures)
        except ImageError as error:
            raise RequestError(str(error), param) from error

    def checked(self, ids: Sequence[int], param: str) -> Ids:
        """Token ids that a client sends itself.

        Raises:
            RequestError: the model has no such tokens, or one is a picture's place.
        """
        unknown = next((place for place, number in enumerate(ids) if not 0 <= number < self.vocab_size), None)
        if unknown is not None:
            found = f"{ids[unknown]} at {unknown}"
            raise RequestError(f"expected token ids from 0 to {self.vocab_size - 1}, found {found}", param)
        pictures = self._tokenizer.pictures
        if pictures is not None and pictures.pictures.token_id in ids:
            found = f"expected token ids of words, found a picture's place, {pictures.pictures.token_id}"
            raise RequestError(found, param)
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
            raise empty(param)
        limit = self.context if self.most_cached is None else min(self.context, self.most_cached)
        try:
            return continuation(len(ids), limit, most, wanted and min(wanted, most))
        except ValueError as error:
            raise self._too_long(param, error, limit) from error

    def _too_long(self, param: str, found: object, limit: int) -> RequestError:
        what = "model can read" if limit == self.context else "server's --kv-reserve holds"
        return RequestError(
            f"expected at most {limit} tokens, as the {what}, found {found}",
            param,
            "context_length_exceeded",
        )


def empty(param: str) -> RequestError:
    return RequestError("expected at least one token, found an empty text", param)
