"""``/v1/chat/completions`` and ``/v1/completions``, whole or as a stream of events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response, StreamingResponse

from weightpager.answers.grammar import Grammar
from weightpager.answers.work import Generate, Generated, Ids, Sampling
from weightpager.bundle import TaskEntry
from weightpager.errors import RequestError
from weightpager.readers.chat_template import conversation_of
from weightpager.server.inputs.picture_inputs import MOST_PICTURES
from weightpager.server.inputs.vocabulary import Vocabulary
from weightpager.server.routes.errors import RESPONSES, describe
from weightpager.server.routes.exchange import ClientGoneError, Exchange, Serving, exchange, user
from weightpager.server.routes.generation_answer import (
    ChatCompletion,
    ChatFormat,
    Completion,
    CompletionFormat,
    generated,
)
from weightpager.server.routes.generation_body import ChatBody, CompletionBody, GenerationBody
from weightpager.server.scheduling.job import Delta, Event
from weightpager.server.scheduling.served_bundle import RequestReaders, ServedBundle
from weightpager.server.scheduling.service import Service
from weightpager.server.schema import Answer, ErrorAnswer, Usage, as_list

router = APIRouter(prefix="/v1", tags=["OpenAI"], dependencies=[Depends(user)], responses=RESPONSES)
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@router.post("/chat/completions", response_model=ChatCompletion)
async def chat(body: ChatBody, request: Request, service: Serving) -> Response:
    """Go on with a conversation."""
    bundle, readers, task = await service.reading(body.model)
    _check_writes(task)
    asked = conversation_of([message.model_dump(include={"role", "content"}) for message in body.messages])
    urls = asked.pictures
    _check_pictures(readers, task, urls, "messages")
    wanted = body.max_completion_tokens or body.max_tokens

    async def read() -> list[Generate]:
        form = await _answer_form(readers, body)
        ids = await readers.texts.chat(asked.messages, task, len(urls))
        work = _work(service, bundle, body, task, ids, wanted, "messages", form)
        return _choices(body, [await _with_pictures(readers, work, urls, wanted, "messages")])

    return await _respond(service, request, body, task, body.n or 1, read, ChatFormat(body), len(urls))


@router.post("/completions", response_model=Completion)
async def completions(body: CompletionBody, request: Request, service: Serving) -> Response:
    """Continue one or more texts."""
    bundle, readers, task = await service.reading(body.model)
    _check_writes(task)
    given, urls = as_list(body.prompt), body.images or []
    _check_pictures(readers, task, urls, "images")
    if urls and not (len(given) == 1 and isinstance(given[0], str)):
        raise RequestError("expected one text as the prompt beside images, found several or token ids", "prompt")
    unstated = task.generation is not None and "max_tokens" not in body.model_fields_set
    wanted = None if unstated else body.max_tokens

    async def read() -> list[Generate]:
        form = await _answer_form(readers, body)
        prompts = await readers.texts.run(partial(_prompt, task=task, pictures=len(urls)), given)
        works = [_work(service, bundle, body, task, ids, wanted, "prompt", form) for ids in prompts]
        return _choices(body, [await _with_pictures(readers, work, urls, wanted, "images") for work in works])

    texts = len(given) * (body.n or 1)
    return await _respond(service, request, body, task, texts, read, CompletionFormat(body), len(urls))


def _check_writes(task: TaskEntry) -> None:
    if not task.writes:
        raise RequestError(f"expected a task that generates text, {task.name!r} is a {task.kind} task", "model")


def _check_pictures(readers: RequestReaders, task: TaskEntry, urls: Sequence[str], param: str) -> None:
    """Refuse pictures that can't be read, or too many, before anything is read."""
    if urls and readers.pictures is None:
        raise RequestError(f"expected text alone, as task {task.name!r} reads it, found {_pictures(urls)}", param)
    if len(urls) > MOST_PICTURES:
        raise RequestError(f"expected at most {MOST_PICTURES} pictures a request, found {len(urls)}", param)


def _pictures(urls: Sequence[str]) -> str:
    return "1 picture" if len(urls) == 1 else f"{len(urls)} pictures"


def _prompt(vocabulary: Vocabulary, given: str | list[int], task: TaskEntry, pictures: int) -> Ids:
    if isinstance(given, str):
        return vocabulary.prompt_with(given, task, pictures, "prompt")
    return vocabulary.checked(given, "prompt")


async def _with_pictures(
    readers: RequestReaders, work: Generate, urls: Sequence[str], wanted: int | None, param: str
) -> Generate:
    """A work with its pictures, which are decoded only now that there is room for them."""
    if not urls or readers.pictures is None:
        return work
    shown = work.shown(await readers.pictures.read(urls, param), readers.pictures.reader)
    return replace(shown, max_new_tokens=readers.vocabulary.room(shown.ids, wanted, work.max_new_tokens, param))


async def _answer_form(readers: RequestReaders, body: GenerationBody) -> Grammar | None:
    """What answers must keep to, which is compiled before anything else is read."""
    schema = body.schema_wanted
    return None if schema is None else await readers.texts.grammar(schema)


def _work(
    service: Service,
    bundle: ServedBundle,
    body: ChatBody | CompletionBody,
    task: TaskEntry,
    ids: Ids,
    wanted: int | None,
    param: str,
    form: Grammar | None,
) -> Generate:
    stated = bundle.answer_tokens(task)
    most = service.settings.most_new_tokens if wanted is not None or stated is None else stated
    room = bundle.readers().vocabulary.room(ids, wanted, most, param)
    sampling = _sampling(bundle, body, task)
    return Generate(ids, room, sampling, body.stops, grammar=form, logprobs=body.likeliest)


def _sampling(bundle: ServedBundle, body: GenerationBody, task: TaskEntry) -> Sampling:
    """How tokens are drawn. Unless the request says so, a text-generation task answers as `eval` measures it."""
    drawn = Sampling.of(body.temperature, body.top_p, body.seed, greedy=task.generation is not None)
    bias = tuple(sorted((int(token), added) for token, added in (body.logit_bias or {}).items()))
    if bias and bias[-1][0] >= (words := bundle.limits.vocab_size):
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
