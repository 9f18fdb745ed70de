"""Bodies of ``/v1/embeddings`` and ``/v1/classifications``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from weightpager.server.schema.common import Answer, Body, Name, OneOrMoreTexts, TextsOrIds, Usage


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
