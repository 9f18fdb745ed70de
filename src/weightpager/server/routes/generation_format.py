"""What is generated, in the words of the two routes."""

from __future__ import annotations

from collections.abc import Sequence

from weightpager.answers.work import Generated
from weightpager.server.http.identity import new_id, now
from weightpager.server.routes.generation_schema import (
    ChatBody,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatMessage,
    Completion,
    CompletionBody,
    CompletionChoice,
)
from weightpager.server.routes.schema import Usage
from weightpager.server.scheduling.job import Delta, Done, Event


def generated(event: Event) -> Generated:
    """What has come of a text that has ended."""
    assert isinstance(event, Done)
    assert isinstance(event.outcome, Generated)
    return event.outcome


class ChatFormat:
    """Of one conversation's answer."""

    def __init__(self, body: ChatBody) -> None:
        """An answer with an id of its own."""
        self.with_usage = body.stream_options is not None and body.stream_options.include_usage
        self._id, self._created, self._model = new_id("chatcmpl"), now(), body.model

    def whole(self, found: Sequence[Generated], usage: Usage) -> ChatCompletion:
        """All at once."""
        choices = [
            ChatChoice(index=index, message=ChatMessage(content=one.text), finish_reason=one.reason)
            for index, one in enumerate(found)
        ]
        return ChatCompletion(id=self._id, created=self._created, model=self._model, choices=choices, usage=usage)

    def opening(self, texts: int) -> list[str]:
        """What a stream begins with."""
        return [self._chunk(index, ChatDelta(role="assistant", content="")) for index in range(texts)]

    def chunk(self, event: Event) -> str:
        """What a stream says of an event."""
        if isinstance(event, Delta):
            return self._chunk(event.index, ChatDelta(content=event.text))
        return self._chunk(event.index, ChatDelta(), generated(event))

    def closing(self, usage: Usage) -> str:
        """What a stream ends with, if it is asked for."""
        return self._dumped([], usage)

    def _chunk(self, index: int, delta: ChatDelta, end: Generated | None = None) -> str:
        reason = None if end is None else end.reason
        return self._dumped([ChatChunkChoice(index=index, delta=delta, finish_reason=reason)])

    def _dumped(self, choices: list[ChatChunkChoice], usage: Usage | None = None) -> str:
        chunk = ChatChunk(id=self._id, created=self._created, model=self._model, choices=choices, usage=usage)
        return chunk.model_dump_json()


class CompletionFormat:
    """Of one or more continuations."""

    def __init__(self, body: CompletionBody) -> None:
        """An answer with an id of its own."""
        self.with_usage = body.stream_options is not None and body.stream_options.include_usage
        self._id, self._created, self._model = new_id("cmpl"), now(), body.model

    def whole(self, found: Sequence[Generated], usage: Usage) -> Completion:
        """All at once."""
        choices = [
            CompletionChoice(index=index, text=one.text, finish_reason=one.reason) for index, one in enumerate(found)
        ]
        return self._completion(choices, usage)

    def opening(self, texts: int) -> list[str]:  # noqa: ARG002 - as the other format's
        """What a stream begins with: nothing."""
        return []

    def chunk(self, event: Event) -> str:
        """What a stream says of an event."""
        if isinstance(event, Delta):
            choice = CompletionChoice(index=event.index, text=event.text)
        else:
            choice = CompletionChoice(index=event.index, text="", finish_reason=generated(event).reason)
        return self._completion([choice]).model_dump_json()

    def closing(self, usage: Usage) -> str:
        """What a stream ends with, if it is asked for."""
        return self._completion([], usage).model_dump_json()

    def _completion(self, choices: list[CompletionChoice], usage: Usage | None = None) -> Completion:
        return Completion(id=self._id, created=self._created, model=self._model, choices=choices, usage=usage)
