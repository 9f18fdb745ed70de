"""What a request to go on with texts or conversations is answered with, whole or as a stream's chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from weightpager.answers.work import Generated, TokenLogprob
from weightpager.server.routes.generation_body import GenerationBody
from weightpager.server.scheduling.job import Delta, Event, TextDone
from weightpager.server.schema import Answer, Usage, new_id, now

Reason = Literal["stop", "length"]


class TopLogprob(Answer):
    """A token that could stand in a place. Bytes that are no whole characters are replaced in ``token``."""

    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Answer):
    """The tokens of an answer, or of a piece of it."""

    content: list[ContentLogprob]
    refusal: None = None

    @classmethod
    def of(cls, tokens: Sequence[TokenLogprob] | None) -> ChatLogprobs | None:
        if tokens is None:
            return None
        return cls(content=[_content(each) for each in tokens])


def _shown(token: bytes) -> str:
    return token.decode("utf-8", "replace")


def _content(token: TokenLogprob) -> ContentLogprob:
    top = [TopLogprob(token=_shown(each), logprob=share, bytes=list(each)) for each, share in token.top]
    said = token.token
    return ContentLogprob(token=_shown(said), logprob=token.logprob, bytes=list(said), top_logprobs=top)


class CompletionLogprobs(Answer):
    """The tokens of a continuation, or of a piece of it. ``text_offset`` counts from the continuation's beginning."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]

    @classmethod
    def of(cls, tokens: Sequence[TokenLogprob] | None) -> CompletionLogprobs | None:
        if tokens is None:
            return None
        return cls(
            tokens=[_shown(each.token) for each in tokens],
            token_logprobs=[each.logprob for each in tokens],
            top_logprobs=[_by_token(each) for each in tokens],
            text_offset=[each.start for each in tokens],
        )


def _by_token(token: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens and the token itself; of those that look alike the likeliest."""
    found: dict[str, float] = {}
    for each, share in (*token.top, (token.token, token.logprob)):
        found.setdefault(_shown(each), share)
    return found


class ChatMessage(Answer):
    """The message that the task answers with."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(Answer):
    """A whole answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Reason


class ChatCompletion(Answer):
    """The answer to a conversation."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(Answer):
    """A piece of an answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(Answer):
    """A piece of an answer; only the last one has a ``finish_reason``."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: Reason | None = None


class ChatChunk(Answer):
    """One event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionChoice(Answer):
    """A continuation, or in a stream a piece of it; only the last piece has a ``finish_reason``."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Reason | None = None


class Completion(Answer):
    """Continuations, or one event of a stream of them."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


def generated(event: Event) -> Generated:
    """The outcome of a text that has ended."""
    assert isinstance(event, TextDone)
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
            ChatChoice(
                index=index,
                message=ChatMessage(content=outcome.text),
                logprobs=ChatLogprobs.of(outcome.logprobs),
                finish_reason=outcome.reason,
            )
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
            logprobs = ChatLogprobs.of(event.logprobs or None)
            return self._chunk(
                ChatChunkChoice(index=event.index, delta=ChatDelta(content=event.text), logprobs=logprobs)
            )
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
            CompletionChoice(
                index=index,
                text=outcome.text,
                logprobs=CompletionLogprobs.of(outcome.logprobs),
                finish_reason=outcome.reason,
            )
            for index, outcome in enumerate(outcomes)
        ]
        return Completion(choices=choices, usage=usage, **self._stamp)

    def opening(self, texts: int) -> list[Completion]:  # noqa: ARG002 - as the other format's
        """The chunks that a stream begins with: none."""
        return []

    def chunk(self, event: Event) -> Completion:
        """The chunk of a stream for an event."""
        if isinstance(event, Delta):
            logprobs = CompletionLogprobs.of(event.logprobs or None)
            choice = CompletionChoice(index=event.index, text=event.text, logprobs=logprobs)
        else:
            choice = CompletionChoice(index=event.index, text="", finish_reason=generated(event).reason)
        return Completion(choices=[choice], **self._stamp)

    def closing(self, usage: Usage) -> Completion:
        """The chunk of usage that a stream ends with, if it is asked for."""
        return self.whole([], usage)
