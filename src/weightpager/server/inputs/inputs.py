"""What a bundle's requests are read by, before they wait: texts and conversations, or images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from weightpager.answers.work import Ids, Look
from weightpager.engine.model.image_reader import ImageReader
from weightpager.server.inputs.chat_template import ChatTemplate
from weightpager.server.inputs.image_inputs import ImageInputs, Picture, check_together
from weightpager.server.inputs.reading import Lane, Reading
from weightpager.server.inputs.vocabulary import Vocabulary
from weightpager.server.scheduling.settings import Settings

_LARGE_TEXT = 2**14
"""Characters or token ids of a request that are much to read."""

_LARGE_IMAGES = 2**22
"""Pixels of a request that are much to read: more than two frames of 1920 × 1080."""

_OF_A_TEMPLATE = 2**16
"""Characters that a template may add to a conversation twice as long as the largest body."""

_Found = TypeVar("_Found")


class TextInputs:
    """Texts and conversations to token ids.

    Attributes:
        vocabulary: of the bundle.
        reading: who reads them.
    """

    def __init__(self, vocabulary: Vocabulary, tokenizer: Any, settings: Settings) -> None:
        """``tokenizer`` has the chat template."""
        self.vocabulary = vocabulary
        self.reading = Reading(vocabulary, vocabulary.copy, settings.queue // 2)
        self._template = ChatTemplate.of(tokenizer, 2 * settings.body_bytes + _OF_A_TEMPLATE)
        self._chats = Lane("chats", lambda: self._template)

    async def read(
        self, given: Sequence[str | Sequence[int]], read: Callable[[Vocabulary, Any], _Found]
    ) -> list[_Found]:
        """What a method of the vocabulary makes of each text. Errors are those of `Reading.read`."""
        pieces = [partial(_apply, read, text) for text in given]
        return await self.reading.read(pieces, large=sum(len(text) for text in given) > _LARGE_TEXT)

    async def chat(self, messages: Sequence[Mapping[str, str]], task: str) -> Ids:
        """A conversation with a task. Errors are those of `ChatTemplate.render` and `Reading.read`."""
        texts = await self._chats.read([lambda template: template.render(messages, task)])
        (ids,) = await self.read(texts, Vocabulary.prompt)
        return ids

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

    def __init__(self, reader: ImageReader, settings: Settings) -> None:
        """``reader`` is the bundle's."""
        inputs = ImageInputs(reader)
        self.reading = Reading(inputs, inputs.copy, settings.queue // 2)

    async def read(self, urls: Sequence[str]) -> list[Look]:
        """A request's images; too many pixels are refused before any is read. Errors are those of `ImageInputs`."""
        pictures: list[Picture] = await self.reading.read([partial(_open, url) for url in urls])
        large = check_together(pictures) > _LARGE_IMAGES
        return await self.reading.read([partial(_look, picture) for picture in pictures], large=large)

    def close(self) -> None:
        """Read nothing any more."""
        self.reading.close()


def _apply(read: Callable[[Vocabulary, Any], _Found], text: Any, vocabulary: Vocabulary) -> _Found:
    return read(vocabulary, text)


def _open(url: str, inputs: ImageInputs) -> Picture:
    return inputs.open(url)


def _look(picture: Picture, inputs: ImageInputs) -> Look:
    return inputs.look(picture)
