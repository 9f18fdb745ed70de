"""Generated texts in the form of each route: of a conversation, or of continuations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from weightpager.answers.work import Generated
from weightpager.server.routes.identity import new_id, now
from weightpager.server.scheduling.job import Delta, Done, Event
from weightpager.server.schema.common import Usage
from weightpager.server.schema.generation import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatMessage,
    Completion,
    CompletionChoice,
    GenerationBody,
)


def generated(event: Event) -> Generated:
    """The outcome of a text that has ended."""
    assert isinstance(event, Done)
    assert isinstance(event.outcome, Generated)
    return event.outcome


class _Format:
    """Fields that all parts of an answer have in common; and whether its stream ends with the usage."""

    _PREFIX: ClassVar[str]

    def __init__(self, body: GenerationBody) -> None:
        self.with_usage = body.with_usage
        self._stamp: dict[str, Any] = {"id": new_id(self._PREFIX), "created": now(), "model": body.model}


class ChatFormat(_Format):
    """Writes the answer to one conversation."""

    _PREFIX = "chatcmpl"

    def whole(self, outcomes: Sequence[Generated], usage: Usage) -> ChatCompletion:
        """The whole answer, of outcomes in the order of the texts."""
        choices = [
            ChatChoice(index=index, message=ChatMessage(content=outcome.text), finish_reason=outcome.reason)
            for index, outcome in enumerate(outcomes)
        ]
        return ChatCompletion(choices=choices, usage=usage, **self._stamp)

    def opening(self, texts: int) -> list[ChatChunk]:
        """The chunks that a stream begins with."""
        first = ChatDelta(role="assistant", content="")
        return [self._chunk(ChatChunkChoice(index=index, delta=first)) for index in range(texts)]

    def chunk(self, event: Event) -> ChatChunk:
        """The chunk of a stream for an event."""
        if isinstance(event, Delta):
            return self._chunk(ChatChunkChoice(index=event.index, delta=ChatDelta(content=event.text)))
        reason = generated(event).reason
        return self._chunk(ChatChunkChoice(index=event.index, delta=ChatDelta(), finish_reason=reason))

    def closing(self, usage: Usage) -> ChatChunk:
        """The chunk of usage that a stream ends with, if it is asked for."""
        return self._chunk(usage=usage)

    def _chunk(self, *choices: ChatChunkChoice, usage: Usage | None = None) -> ChatChunk:
        return ChatChunk(choices=list(choices), usage=usage, **self._stamp)


class CompletionFormat(_Format):
    """Writes one or more continuations."""

    _PREFIX = "cmpl"

    def whole(self, outcomes: Sequence[Generated], usage: Usage) -> Completion:
        """The whole answer, of outcomes in the order of the texts."""
        choices = [
            CompletionChoice(index=index, text=outcome.text, finish_reason=outcome.reason)
            for index, outcome in enumerate(outcomes)
        ]
        return Completion(choices=choices, usage=usage, **self._stamp)

    def opening(self, texts: int) -> list[Completion]:  # noqa: ARG002 - as the other format's
        """The chunks that a stream begins with: none."""
        return []

    def chunk(self, event: Event) -> Completion:
        """The chunk of a stream for an event."""
        if isinstance(event, Delta):
            choice = CompletionChoice(index=event.index, text=event.text)
        else:
            choice = CompletionChoice(index=event.index, text="", finish_reason=generated(event).reason)
        return Completion(choices=[choice], **self._stamp)

    def closing(self, usage: Usage) -> Completion:
        """The chunk of usage that a stream ends with, if it is asked for."""
        return self.whole([], usage)
