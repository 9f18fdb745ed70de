"""``/v1/chat/completions`` and ``/v1/completions``, whole or as a stream of events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import AfterValidator, Discriminator, Field, Tag

from weightpager.answers.work import Generate, Generated, Ids, Sampling
from weightpager.bundle import TaskEntry
from weightpager.errors import RequestError
from weightpager.readers.chat_template import conversation_of
from weightpager.server.inputs.picture_inputs import MOST_PICTURES, MOST_URL_CHARACTERS
from weightpager.server.inputs.vocabulary import Vocabulary
from weightpager.server.routes.errors import RESPONSES, describe
from weightpager.server.routes.exchange import ClientGoneError, Exchange, Serving, exchange, user
from weightpager.server.scheduling.job import Delta, Event, TextDone
from weightpager.server.scheduling.service import Service
from weightpager.server.schema import (
    Answer,
    Body,
    ErrorAnswer,
    Name,
    Text,
    TextsOrIds,
    Usage,
    as_list,
    encodable,
    new_id,
    now,
)

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


_MOST_CHOICES, _MOST_BIASES = 16, 300
_Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
_Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
_TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,8}$", examples=["50256"])]


class GenerationBody(Body):
    """The fields of both routes. A field that would change the answer, and that a bundle can't serve, is refused."""

    model: Name
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: _Temperature | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = 1.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=4)] | None = None
    n: Annotated[int, Field(ge=1, le=_MOST_CHOICES)] | None = 1
    frequency_penalty: _Penalty | None = None
    presence_penalty: _Penalty | None = None
    logit_bias: Annotated[dict[_TokenId, _Bias], Field(max_length=_MOST_BIASES)] | None = None
    response_format: PlainText | None = None

    @property
    def with_usage(self) -> bool:
        """Whether a stream tells at its end how many tokens there were."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end a continuation."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


_Picture = Annotated[
    str,
    Field(
        max_length=MOST_URL_CHARACTERS,
        description="A data URL, `data:image/png;base64,…` (or bmp, jpeg, webp): nothing is fetched from an address.",
    ),
]


class TextPart(Body):
    """A piece of a message's text."""

    type: Literal["text"]
    text: Text


class PictureUrl(Body):
    """Where a picture is. ``detail`` is ignored: every picture takes as many tokens as the model was trained with."""

    url: _Picture
    detail: Literal["auto", "low", "high"] | None = None


class PicturePart(Body):
    """A picture among a message's words, for tasks that read pictures."""

    type: Literal["image_url"]
    image_url: PictureUrl


def _kind_of_part(part: Any) -> str | None:
    """The tag of a part's form, which is no name that a path to a field could have."""
    kind = part.get("type") if isinstance(part, dict) else getattr(part, "type", None)
    return {"text": "a text", "image_url": "a picture"}.get(kind) if isinstance(kind, str) else None


_Part = Annotated[
    Annotated[TextPart, Tag("a text")] | Annotated[PicturePart, Tag("a picture")],
    Discriminator(
        _kind_of_part,
        custom_error_type="part",
        custom_error_message="expected a part whose type is 'text' or 'image_url'",
    ),
]


class Message(Body):
    """A message of a conversation: a text, or texts and pictures in the order in which they are read."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[_Part], Field(max_length=64)]


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
    """One or more texts to continue, or one with pictures.

    ``images`` is weightpager's own: pictures of the prompt, for tasks that read any. They stand where the prompt has
    the model's placeholder, such as ``<image>``, or in front of it.
    """

    prompt: TextsOrIds
    images: Annotated[list[_Picture], Field(max_length=MOST_PICTURES)] | None = None
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


router = APIRouter(prefix="/v1", tags=["OpenAI"], dependencies=[Depends(user)], responses=RESPONSES)
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@router.post("/chat/completions", response_model=ChatCompletion)
async def chat(body: ChatBody, request: Request, service: Serving) -> Response:
    """Go on with a conversation."""
    task = _writer(service, body.model)
    asked = conversation_of([message.model_dump(include={"role", "content"}) for message in body.messages])
    urls = asked.pictures
    _check_pictures(service, task, urls, "messages")
    wanted = body.max_completion_tokens or body.max_tokens

    async def read() -> list[Generate]:
        work = _work(service, body, task, await service.texts.chat(asked.messages, task, len(urls)), wanted, "messages")
        return _choices(body, [await _with_pictures(service, work, urls, "messages")])

    return await _respond(service, request, body, task, body.n or 1, read, ChatFormat(body), len(urls))


@router.post("/completions", response_model=Completion)
async def completions(body: CompletionBody, request: Request, service: Serving) -> Response:
    """Continue one or more texts."""
    task = _writer(service, body.model)
    given, urls = as_list(body.prompt), body.images or []
    _check_pictures(service, task, urls, "images")
    if urls and not (len(given) == 1 and isinstance(given[0], str)):
        raise RequestError("expected one text as the prompt beside images, found several or token ids", "prompt")
    unstated = task.generation is not None and "max_tokens" not in body.model_fields_set
    wanted = None if unstated else body.max_tokens

    async def read() -> list[Generate]:
        prompts = await service.texts.run(partial(_prompt, task=task, pictures=len(urls)), given)
        works = [_work(service, body, task, ids, wanted, "prompt") for ids in prompts]
        return _choices(body, [await _with_pictures(service, work, urls, "images") for work in works])

    texts = len(given) * (body.n or 1)
    return await _respond(service, request, body, task, texts, read, CompletionFormat(body), len(urls))


def _writer(service: Service, name: str) -> TaskEntry:
    task = service.task(name)
    if not task.writes:
        raise RequestError(f"expected a task that generates text, {name!r} is a {task.kind} task", "model")
    return task


def _check_pictures(service: Service, task: TaskEntry, urls: Sequence[str], param: str) -> None:
    """Refuse pictures that can't be read, or too many, before anything is read."""
    if urls and service.pictures is None:
        raise RequestError(f"expected text alone, as task {task.name!r} reads it, found {_pictures(urls)}", param)
    if len(urls) > MOST_PICTURES:
        raise RequestError(f"expected at most {MOST_PICTURES} pictures a request, found {len(urls)}", param)


def _pictures(urls: Sequence[str]) -> str:
    return "1 picture" if len(urls) == 1 else f"{len(urls)} pictures"


def _prompt(vocabulary: Vocabulary, given: str | list[int], task: TaskEntry, pictures: int) -> Ids:
    if isinstance(given, str):
        return vocabulary.prompt_with(given, task, pictures, "prompt")
    return vocabulary.checked(given, "prompt")


async def _with_pictures(service: Service, work: Generate, urls: Sequence[str], param: str) -> Generate:
    """A work with its pictures, which are decoded only now that there is room for them."""
    if not urls or service.pictures is None:
        return work
    return replace(work, pictures=await service.pictures.read(urls, param))


def _work(
    service: Service, body: GenerationBody, task: TaskEntry, ids: Ids, wanted: int | None, param: str
) -> Generate:
    stated = service.answer_tokens(task)
    most = service.settings.most_new_tokens if wanted is not None or stated is None else stated
    room = service.vocabulary.room(ids, wanted, most, param)
    return Generate(ids, room, _sampling(service, body, task), body.stops)


def _sampling(service: Service, body: GenerationBody, task: TaskEntry) -> Sampling:
    """How tokens are drawn. Unless the request says so, a text-generation task answers as `eval` measures it."""
    drawn = Sampling.of(body.temperature, body.top_p, body.seed, greedy=task.generation is not None)
    bias = tuple(sorted((int(token), added) for token, added in (body.logit_bias or {}).items()))
    if bias and bias[-1][0] >= (words := service.engine.limits.vocab_size):
        raise RequestError(f"expected ids of tokens below {words}, found {bias[-1][0]}", "logit_bias")
    return replace(
        drawn,
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        bias=bias,
    )


def _choices(body: GenerationBody, works: Sequence[Generate]) -> list[Generate]:
    """Each work as often as choices are wanted, one behind the other; a seed is one for each, counted on."""

    def choice(work: Generate, number: int) -> Generate:
        seed = work.sampling.seed
        return work if seed is None else replace(work, sampling=replace(work.sampling, seed=seed + number))

    return [choice(work, number) for work in works for number in range(body.n or 1)]


async def _respond(
    service: Service,
    request: Request,
    body: GenerationBody,
    task: TaskEntry,
    texts: int,
    read: Callable[[], Coroutine[Any, Any, list[Generate]]],
    form: ChatFormat | CompletionFormat,
    pictures: int,
) -> Response:
    async with AsyncExitStack() as stack:
        events = await stack.enter_async_context(exchange(service, request, task, texts, pictures))
        works = await events.submit(read())
        prompt = sum(len(work.ids) for work in works) // (body.n or 1)  # each counts once
        if body.stream:
            # The first event decides what the status is: errors before it are answered like any other.
            first = await events.next()
            request.state.waited = events.waited  # for the header, which goes before the exchange ends
            stream = _stream(stack.pop_all(), events, first, prompt, texts, form)
            return StreamingResponse(stream, media_type="text/event-stream", headers=_HEADERS)
        outcomes = [outcome for outcome in await events.outcomes() if isinstance(outcome, Generated)]
    usage = Usage.of(prompt, sum(outcome.tokens for outcome in outcomes))
    return Response(form.whole(outcomes, usage).model_dump_json(), media_type="application/json")


async def _stream(
    stack: AsyncExitStack,
    events: Exchange,
    event: Event,
    prompt: int,
    texts: int,
    form: ChatFormat | CompletionFormat,
) -> AsyncIterator[str]:
    """Server-sent events. When the client stops reading, the block ends and cancels the jobs that are left."""
    async with stack:
        left, tokens = texts, 0
        for chunk in form.opening(texts):
            yield _sent(chunk)
        try:
            while True:
                yield _sent(form.chunk(event))
                if not isinstance(event, Delta):
                    left -= 1
                    tokens += generated(event).tokens
                if not left:
                    break
                event = await events.next()
        except ClientGoneError:
            return
        except Exception as error:  # noqa: BLE001 - the status has been sent: the stream says it
            yield _sent(ErrorAnswer(error=describe(error)[1]))
            return
        if form.with_usage:
            yield _sent(form.closing(Usage.of(prompt, tokens)))
        yield "data: [DONE]\n\n"


def _sent(data: Answer) -> str:
    return f"data: {data.model_dump_json()}\n\n"
