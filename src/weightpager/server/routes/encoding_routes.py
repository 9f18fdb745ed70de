"""``/v1/models``, ``/v1/embeddings`` and ``/v1/classifications``."""

from __future__ import annotations

import base64
from typing import Annotated, Literal, cast

import numpy as np
from fastapi import APIRouter, Depends, Request
from pydantic import Field

from weightpager.answers.kinds import Classification, EncodingKind, kind_of
from weightpager.answers.work import Embed, Embedded
from weightpager.errors import RequestError
from weightpager.server.inputs.vocabulary import Vocabulary
from weightpager.server.routes.errors import RESPONSES
from weightpager.server.routes.exchange import Serving, exchange, user
from weightpager.server.scheduling.service import Service
from weightpager.server.schema import (
    Answer,
    Body,
    Model,
    ModelList,
    Name,
    OneOrMoreTexts,
    TextsOrIds,
    Usage,
    as_list,
    new_id,
    now,
)


class EmbeddingBody(Body):
    """Texts whose vectors are wanted."""

    model: Name
    input: TextsOrIds
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: None = None


class Embedding(Answer):
    """A text's vector: numbers, or the base64 of their little-endian float32 bytes."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingList(Answer):
    """Vectors in the order of the texts."""

    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: Usage


class ClassificationBody(Body):
    """Texts, for a task that classifies texts or tags words; data URLs of images, for a task that classifies images."""

    model: Name
    input: OneOrMoreTexts
    top: Annotated[int, Field(ge=1, description="Only so many of the likeliest classes in `scores`.")] | None = None


class ClassificationList(Answer):
    """Answers in the order of the texts."""

    object: Literal["list"] = "list"
    id: str
    created: int
    model: str
    data: list[Classification]
    usage: Usage


router = APIRouter(prefix="/v1", tags=["OpenAI"], dependencies=[Depends(user)], responses=RESPONSES)


@router.get("/models")
async def models(service: Serving) -> ModelList:
    """All tasks; loads nothing."""
    return ModelList(data=[_model(name, service, fits) for name, fits in service.fitting(service.tasks).items()])


@router.get("/models/{name:path}")
async def model(name: str, service: Serving) -> Model:
    """One task; loads nothing."""
    return _model(name, service, service.fits(name))


@router.post("/embeddings")
async def embeddings(body: EmbeddingBody, request: Request, service: Serving) -> EmbeddingList:
    """Vectors of texts: the last hidden state below the task's head, averaged over tokens. Any task on texts has it."""
    _, readers, task = await service.reading(body.model)
    texts, inputs = readers.texts, as_list(body.input)
    async with exchange(service, request, task, len(inputs)) as events:
        works = await events.submit(texts.run(_embed, inputs))
        outcomes = await events.outcomes()
    data = [
        Embedding(index=index, embedding=_vector(outcome, body.encoding_format))
        for index, outcome in enumerate(cast(list[Embedded], outcomes))
    ]
    return EmbeddingList(model=body.model, data=data, usage=Usage.of(sum(len(work.ids) for work in works)))


@router.post("/classifications")
async def classifications(body: ClassificationBody, request: Request, service: Serving) -> ClassificationList:
    """Classes of texts or images, or tags of words. The route is weightpager's own; OpenAI has none for it."""
    _, readers, task = await service.reading(body.model)
    inputs = [body.input] if isinstance(body.input, str) else body.input
    if task.writes:
        raise RequestError(f"expected a task that classifies, {task.name!r} is a {task.kind} task", "model")
    async with exchange(service, request, task, len(inputs)) as events:
        works = await events.submit(readers.inputs.works(task, inputs))
        outcomes = await events.outcomes()
    kind = cast(EncodingKind, kind_of(task.kind))
    data = [
        kind.told(task, outcome, body.top, index=index, truncated=work.truncated)
        for index, (outcome, work) in enumerate(zip(outcomes, works, strict=True))
    ]
    usage = Usage.of(sum(len(work.ids) for work in works))
    return ClassificationList(id=new_id("cls"), created=now(), model=task.name, data=data, usage=usage)


def _model(name: str, service: Service, available: bool) -> Model:
    bundle, task = service.bundle_of(name)
    pictures = bundle.bundle.pictures
    return Model(
        id=task.name,
        created=int(service.started),
        kind=task.kind,
        classes=task.classes,
        max_length=task.max_length,
        prompts=None if task.generation is None else task.generation.prompts,
        max_new_tokens=bundle.answer_tokens(task),
        picture_tokens=None if pictures is None else pictures.tokens,
        available=available,
        awake=bundle.is_awake,
    )


def _embed(vocabulary: Vocabulary, given: str | list[int]) -> Embed:
    return Embed(vocabulary.embed(given))


def _vector(outcome: Embedded, encoding: str) -> list[float] | str:
    if encoding == "float":
        return list(outcome.vector)
    return base64.b64encode(np.array(outcome.vector, "<f4").tobytes()).decode()
