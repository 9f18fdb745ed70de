"""What a bundle's requests are read by, before they wait: texts and conversations, or images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from weightpager.answers.kinds import kind_of
from weightpager.answers.work import Ids, Work
from weightpager.bundle import TaskEntry
from weightpager.errors import RequestError
from weightpager.readers.chat_template import LIMIT, ChatTemplate, plain
from weightpager.readers.image_reader import ImageReader
from weightpager.readers.tokenizer import Tokenizer
from weightpager.server.inputs.image_inputs import ImageInputs, check_together
from weightpager.server.inputs.reading import Lane, Reading
from weightpager.server.inputs.vocabulary import Vocabulary, empty

_LARGE_TEXT = 2**14
"""Characters or token ids of a request that are much to read."""

_LARGE_IMAGES = 2**22
"""Pixels of a request that are much to read: more than two frames of 1920 × 1080."""

_OF_A_TEMPLATE = 2**16
"""Characters that a template may add to a conversation twice as long as the largest body."""

_Given = TypeVar("_Given", bound="str | Sequence[int]")
_Found = TypeVar("_Found")


class TextInputs:
    """Texts and conversations to token ids.

    Attributes:
        vocabulary: of the bundle.
        reading: who reads them.
    """

    def __init__(self, vocabulary: Vocabulary, tokenizer: Tokenizer, *, most: int, body_bytes: int) -> None:
        """Nothing is read yet.

        Args:
            vocabulary: of the bundle.
            tokenizer: that has the chat template.
            most: as of `Reading`.
            body_bytes: of the largest request.
        """
        self.vocabulary = vocabulary
        self.reading = Reading(vocabulary, vocabulary.copy, most)
        self._template = ChatTemplate.of(tokenizer, 2 * body_bytes + _OF_A_TEMPLATE)
        self._chats = Lane("chats", lambda: self._template)

    async def read(self, read: Callable[[Vocabulary, _Given], _Found], given: Sequence[_Given]) -> list[_Found]:
        """What a function makes of each text. Errors are those of `Reading.read`."""
        return await self.reading.read(read, given, large=sum(map(len, given)) > _LARGE_TEXT)

    async def works(self, task: TaskEntry, texts: Sequence[str]) -> list[Work]:
        """What each text asks of a task that finds classes. Errors are those of `read`.

        Raises:
            RequestError: there is nothing to read.
        """
        kind = kind_of(task.kind)

        def work(vocabulary: Vocabulary, text: str) -> Work:
            found = kind.read(vocabulary, task, text, 0)
            if not found.tokens:
                raise empty("input")
            return found

        return await self.read(work, texts)

    async def chat(self, messages: Sequence[Mapping[str, str]], task: TaskEntry) -> Ids:
        """A conversation with a task. Errors are those of `ChatTemplate.render` and `Reading.read`.

        A task that learnt from plain prompts never saw the model's template: it reads the messages' texts.
        """
        if task.generation is not None and task.generation.prompts == "plain":
            texts = [plain(messages)]
        else:
            texts = [await self._rendered(messages, task)]
        (ids,) = await self.read(Vocabulary.prompt, texts)
        return ids

    async def _rendered(self, messages: Sequence[Mapping[str, str]], task: TaskEntry) -> str:
        try:
            (text,) = await self._chats.read(ChatTemplate.render, [messages])
        except RequestError as error:
            if error.code != LIMIT:
                raise
            what = f"task {task.name!r}: {error}; send a prompt of your own to /v1/completions"
            raise RequestError(what, error.param, error.code) from error
        return text

    def close(self) -> None:
        """Read nothing any more."""
        self._chats.close()
        self._template.close()
        self.reading.close()


class PictureInputs:
    """Data URLs to pixels.

    Attributes:
        reading: who reads them.
    """

    vocabulary = None

    def __init__(self, reader: ImageReader, *, most: int) -> None:
        """``reader`` is the bundle's, ``most`` as of `Reading`."""
        inputs = ImageInputs(reader)
        self.reading = Reading(inputs, inputs.copy, most)

    async def works(self, task: TaskEntry, urls: Sequence[str]) -> list[Work]:  # noqa: ARG002 - all read images alike
        """A request's images; too many pixels are refused before any is read. Errors are those of `ImageInputs`."""
        pictures = await self.reading.read(ImageInputs.open, urls)
        return await self.reading.read(ImageInputs.look, pictures, large=check_together(pictures) > _LARGE_IMAGES)

    def close(self) -> None:
        """Read nothing any more."""
        self.reading.close()
