"""``/v1/models``, ``/v1/embeddings`` and ``/v1/classifications``."""

from __future__ import annotations

import base64
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, Depends, Request
from pydantic import Field

from weightpager.answers.kinds import kind_of
from weightpager.answers.work import Classified, Embed, Embedded, Outcome, Tagged
from weightpager.bundle import TaskEntry
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


class Score(Answer):
    """A class and its probability."""

    label: str
    score: float


class TaggedWord(Answer):
    """A word of the text, its tag, and the tag's probability."""

    word: str
    label: str
    score: float


class Classification(Answer):
    """The answer for one text or image.

    A classification task gives ``label``, ``score`` and ``scores``, the likeliest class first. A token task gives the
    ``words`` that it read. A text longer than the task's `max_length` is cut off there, and ``truncated`` says so.
    """

    object: Literal["classification"] = "classification"
    index: int
    truncated: bool
    label: str | None = None
    score: float | None = None
    scores: list[Score] | None = None
    words: list[TaggedWord] | None = None


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
    tasks = service.engine.bundle.tasks
    return ModelList(data=[_model(tasks[name], service, fits) for name, fits in service.fitting(tasks).items()])


@router.get("/models/{name}")
async def model(name: str, service: Serving) -> Model:
    """One task; loads nothing."""
    return _model(service.task(name), service, service.fits(name))


@router.post("/embeddings")
async def embeddings(body: EmbeddingBody, request: Request, service: Serving) -> EmbeddingList:
    """Vectors of texts: the last hidden state below the task's head, averaged over tokens. Any task on texts has it."""
    task = service.task(body.model)
    texts, inputs = service.texts, as_list(body.input)
    async with exchange(service, request, task, len(inputs)) as events:
        works = await events.submit(texts.run(_embed, inputs))
        outcomes = await events.outcomes()
    data = [
        Embedding(index=index, embedding=_vector(outcome, body.encoding_format))
        for index, outcome in enumerate(outcomes)
    ]
    return EmbeddingList(model=body.model, data=data, usage=Usage.of(sum(len(work.ids) for work in works)))


@router.post("/classifications")
async def classifications(body: ClassificationBody, request: Request, service: Serving) -> ClassificationList:
    """Classes of texts or images, or tags of words. The route is weightpager's own; OpenAI has none for it."""
    task = service.task(body.model)
    inputs = [body.input] if isinstance(body.input, str) else body.input
    if kind_of(task.kind).writes:
        raise RequestError(f"expected a task that classifies, {task.name!r} is a {task.kind} task", "model")
    async with exchange(service, request, task, len(inputs)) as events:
        works = await events.submit(service.inputs.works(task, inputs))
        outcomes = await events.outcomes()
    cuts = [work.truncated for work in works]
    data = [
        _classification(index, outcome, truncated, task, body.top)
        for index, (outcome, truncated) in enumerate(zip(outcomes, cuts, strict=True))
    ]
    usage = Usage.of(sum(len(work.ids) for work in works))
    return ClassificationList(id=new_id("cls"), created=now(), model=task.name, data=data, usage=usage)


def _model(task: TaskEntry, service: Service, available: bool) -> Model:
    return Model(
        id=task.name,
        created=int(service.started),
        kind=task.kind,
        classes=task.classes,
        max_length=task.max_length,
        prompts=None if task.generation is None else task.generation.prompts,
        max_new_tokens=service.answer_tokens(task),
        available=available,
    )


def _embed(vocabulary: Vocabulary, given: str | list[int]) -> Embed:
    return Embed(vocabulary.embed(given))


def _classification(index: int, outcome: Outcome, truncated: bool, task: TaskEntry, top: int | None) -> Classification:
    if isinstance(outcome, Tagged):
        words = [TaggedWord(word=word, label=task.classes[number], score=score) for word, number, score in outcome.tags]
        return Classification(index=index, truncated=truncated, words=words)
    assert isinstance(outcome, Classified)
    pairs = zip(task.classes, outcome.probabilities, strict=True)
    scores = [Score(label=label, score=score) for label, score in sorted(pairs, key=lambda pair: -pair[1])]
    return Classification(
        index=index, truncated=truncated, label=scores[0].label, score=scores[0].score, scores=scores[:top]
    )


def _vector(outcome: Outcome, encoding: str) -> list[float] | str:
    assert isinstance(outcome, Embedded)
    if encoding == "float":
        return list(outcome.vector)
    return base64.b64encode(np.array(outcome.vector, "<f4").tobytes()).decode()
