"""``/v1/chat/completions`` and ``/v1/completions``, whole or as a stream of events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response, StreamingResponse

from weightpager.answers.kinds import kind_of
from weightpager.answers.work import Generate, Generated, Ids, Sampling
from weightpager.bundle import TaskEntry
from weightpager.errors import RequestError
from weightpager.server.inputs.vocabulary import Vocabulary
from weightpager.server.routes.access import Serving, user
from weightpager.server.routes.errors import RESPONSES, describe
from weightpager.server.routes.exchange import ClientGoneError, Exchange, exchange
from weightpager.server.routes.generation_format import ChatFormat, CompletionFormat, generated
from weightpager.server.scheduling.job import Delta, Event
from weightpager.server.scheduling.service import Service
from weightpager.server.schema.common import Answer, ErrorAnswer, Usage, as_list
from weightpager.server.schema.generation import (
    ChatBody,
    ChatCompletion,
    Completion,
    CompletionBody,
    GenerationBody,
)

router = APIRouter(prefix="/v1", tags=["OpenAI"], dependencies=[Depends(user)], responses=RESPONSES)
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@router.post("/chat/completions", response_model=ChatCompletion)
async def chat(body: ChatBody, request: Request, service: Serving) -> Response:
    """Go on with a conversation."""
    task = _writer(service, body.model)
    messages = [{"role": message.role, "content": message.text} for message in body.messages]
    wanted = body.max_completion_tokens or body.max_tokens

    async def read() -> list[Generate]:
        return [_work(service, body, task, await service.texts.chat(messages, task), wanted, "messages")]

    return await _respond(service, request, body, task, 1, read, ChatFormat(body))


@router.post("/completions", response_model=Completion)
async def completions(body: CompletionBody, request: Request, service: Serving) -> Response:
    """Continue one or more texts."""
    task = _writer(service, body.model)
    given = as_list(body.prompt)
    unstated = task.generation is not None and "max_tokens" not in body.model_fields_set
    wanted = None if unstated else body.max_tokens

    async def read() -> list[Generate]:
        prompts = await service.texts.run(partial(_prompt, task=task), given)
        return [_work(service, body, task, ids, wanted, "prompt") for ids in prompts]

    return await _respond(service, request, body, task, len(given), read, CompletionFormat(body))


def _writer(service: Service, name: str) -> TaskEntry:
    task = service.task(name)
    if not kind_of(task.kind).writes:
        raise RequestError(f"expected a task that generates text, {name!r} is a {task.kind} task", "model")
    return task


def _prompt(vocabulary: Vocabulary, given: str | list[int], task: TaskEntry) -> Ids:
    return vocabulary.prompt(given, task) if isinstance(given, str) else vocabulary.checked(given, "prompt")


def _work(
    service: Service, body: GenerationBody, task: TaskEntry, ids: Ids, wanted: int | None, param: str
) -> Generate:
    stated = service.answer_tokens(task)
    most = service.settings.most_new_tokens if wanted is not None or stated is None else stated
    room = service.vocabulary.room(ids, wanted, most, param)
    return Generate(ids, room, _sampling(body, task), body.stops)


def _sampling(body: GenerationBody, task: TaskEntry) -> Sampling:
    """How tokens are drawn. Unless the request says so, a text-generation task answers as `eval` measures it."""
    return Sampling.of(body.temperature, body.top_p, body.seed, greedy=task.generation is not None)


async def _respond(
    service: Service,
    request: Request,
    body: GenerationBody,
    task: TaskEntry,
    texts: int,
    read: Callable[[], Coroutine[Any, Any, list[Generate]]],
    form: ChatFormat | CompletionFormat,
) -> Response:
    async with AsyncExitStack() as stack:
        events = await stack.enter_async_context(exchange(service, request, task, texts))
        works = await events.submit(read())
        prompt = sum(len(work.ids) for work in works)
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
