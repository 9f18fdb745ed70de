"""Requests' texts and conversations to token ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from weightpager.answers.grammar import Grammar, Grammars
from weightpager.answers.kinds import kind_of
from weightpager.answers.model import FORWARD_TOKENS, Activations
from weightpager.answers.work import Ids, Work
from weightpager.bundle import TaskEntry
from weightpager.errors import RequestError
from weightpager.readers.chat_template import LIMIT, ChatTemplate, begun, plain
from weightpager.readers.tokenizer import Tokenizer
from weightpager.server.inputs.lanes import Lane, TwoLanes
from weightpager.server.inputs.vocabulary import Vocabulary, empty

_LARGE = 2**14
"""Characters or token ids of a request that are much to read."""

_OF_A_TEMPLATE = 2**16
"""Characters that a template may add to a conversation twice as long as the largest body."""

_Text = TypeVar("_Text", bound="str | Sequence[int]")
_Found = TypeVar("_Found")


class TextInputs:
    """Texts and conversations to token ids."""

    def __init__(self, vocabulary: Vocabulary, tokenizer: Tokenizer, *, most: int, body_bytes: int) -> None:
        """Nothing is read yet.

        Args:
            vocabulary: of the bundle.
            tokenizer: with the chat template.
            most: that of `TwoLanes`.
            body_bytes: of a body without its pictures.
        """
        self.vocabulary = vocabulary
        self.lanes = TwoLanes(vocabulary, vocabulary.copy, most)
        self._most = 2 * body_bytes + _OF_A_TEMPLATE
        self._placeholder = "" if tokenizer.pictures is None else tokenizer.pictures.pictures.token
        self._template = ChatTemplate.of(tokenizer, self._most)
        self._chats = Lane("chats", lambda: self._template)
        self._grammars = Lane("grammars", vocabulary.grammars)

    async def run(self, function: Callable[[Vocabulary, _Text], _Found], texts: Sequence[_Text]) -> list[_Found]:
        """What a function makes of each text. Errors are those of `TwoLanes.run`.

        Raises:
            RequestError: they are too long together, in a body that had room for pictures.
        """
        length = sum(map(len, texts))
        if length > self._most:
            raise RequestError(f"expected texts of at most {self._most} characters together, found {length}")
        return await self.lanes.run(function, texts, large=length > _LARGE)

    async def works(self, task: TaskEntry, texts: Sequence[str]) -> list[Work]:
        """What each text asks of a task that finds classes. Errors are those of `run`.

        Raises:
            RequestError: there is nothing to read.
        """
        kind = kind_of(task.kind)

        def work(vocabulary: Vocabulary, text: str) -> Work:
            found = kind.read(vocabulary, task, text, 0)
            if not found.tokens:
                raise empty("input")
            return found

        return await self.run(work, texts)

    async def chat(self, messages: Sequence[Mapping[str, Any]], task: TaskEntry, pictures: int = 0) -> Ids:
        """A conversation with a task, with so many pictures in its parts.

        A task that learnt from plain prompts never saw the model's template: it reads the messages' texts
        as one prompt, to which nothing is added. Errors are those of `ChatTemplate.render`, `Vocabulary.prompt_with`
        and `run`.
        """
        chat = task.generation is None or task.takes_conversations
        text = await self._rendered(begun(messages, task.system), task) if chat else plain(messages, self._placeholder)
        prompt = partial(Vocabulary.prompt_with, task=task, pictures=pictures, param="messages", chat=chat)
        (ids,) = await self.run(prompt, [text])
        return ids

    async def _rendered(self, messages: Sequence[Mapping[str, Any]], task: TaskEntry) -> str:
        try:
            (text,) = await self._chats.run(ChatTemplate.render, [messages])
        except RequestError as error:
            if error.code != LIMIT:
                raise
            what = f"task {task.name!r}: {error}; send a prompt of your own to /v1/completions"
            raise RequestError(what, error.param, error.code) from error
        return text

    async def grammar(self, schema: object) -> Grammar:
        """What a schema allows. Errors are those of `Grammars` and of `Grammars.compiled`."""
        (found,) = await self._grammars.run(Grammars.compiled, [schema])
        return found

    def close(self) -> None:
        self._chats.close()
        self._grammars.close()
        self._template.close()
        self.lanes.close()


IN_PIECES = 8192
"""Tokens of the longest text, unless told otherwise, of a task that reads in pieces, others having turns between."""


@dataclass(frozen=True)
class TextLimit:
    """What one text may ask for.

    Attributes:
        activations: the bytes that a forward takes, of the task that takes most.
    """

    tokens: int
    in_pieces: bool
    activations: Activations

    def cached(self, tokens: int) -> bool:
        """Whether a text whose vector is wanted is read in pieces, and so needs a cache."""
        return self.in_pieces and not self.activations.fit(1, tokens, tokens)


def default_limit(context: int | None, length: int | None, *, in_pieces: bool) -> int:
    """Tokens of the longest text of a task, unless told otherwise.

    A model that reads a text at once lets nobody have a turn meanwhile: there it is what one forward should take.

    Args:
        context: that the model can read; None where it reads images.
        length: that the task was compiled with; what it is cut to is read in any case.
        in_pieces: whether the model reads the task's texts in pieces.
    """
    most = max(IN_PIECES if in_pieces else FORWARD_TOKENS, length or 0)
    return most if context is None else min(context, most)
