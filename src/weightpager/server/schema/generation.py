"""Bodies of ``/v1/chat/completions`` and ``/v1/completions``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from weightpager.readers.messages import joined
from weightpager.server.schema.common import Answer, Body, Name, Text, TextsOrIds, Usage, encodable

_Stop = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(encodable)]
_Temperature = Annotated[
    float,
    Field(
        ge=0,
        le=2,
        allow_inf_nan=False,
        description="0 is greedy. Unless stated: 0 for a task of text generation while `top_p` is 1; 1 for others.",
    ),
]
_Nothing = Annotated[list[Any], Field(max_length=0)] | None


class StreamOptions(Body):
    """Options of a stream. With ``include_usage`` its last chunk tells how many tokens there were."""

    include_usage: bool = False


class PlainText(Body):
    """The form of an answer; this is the only one."""

    type: Literal["text"]


class GenerationBody(Body):
    """The fields of both routes. A field that would change the answer, and that a bundle can't serve, is refused."""

    model: Name
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: _Temperature | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = 1.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=4)] | None = None
    n: Literal[1] | None = 1
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    response_format: PlainText | None = None

    @property
    def with_usage(self) -> bool:
        """Whether a stream tells at its end how many tokens there were."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end a continuation."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class TextPart(Body):
    """A piece of a message. Only text is taken, no pictures."""

    type: Literal["text"]
    text: Text


class Message(Body):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(max_length=64)]

    @property
    def text(self) -> str:
        """All of its content."""
        return self.content if isinstance(self.content, str) else joined(part.text for part in self.content)


class ChatBody(GenerationBody):
    """A conversation to go on with."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    tools: _Nothing = None
    functions: _Nothing = None


class CompletionBody(GenerationBody):
    """One or more texts to continue."""

    prompt: TextsOrIds
    max_tokens: Annotated[int, Field(ge=1)] | None = 16
    logprobs: None = None
    echo: Literal[False] | None = None
    suffix: None = None
    best_of: Literal[1] | None = None


Reason = Literal["stop", "length"]


class ChatMessage(Answer):
    """The message that the task answers with."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(Answer):
    """A whole answer."""

    index: int
    message: ChatMessage
    logprobs: None = None
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
    logprobs: None = None
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
    logprobs: None = None
    finish_reason: Reason | None = None


class Completion(Answer):
    """Continuations, or one event of a stream of them."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
