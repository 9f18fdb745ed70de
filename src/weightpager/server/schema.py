"""What bodies of several routes share."""

from __future__ import annotations

import secrets
import time
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from weightpager.config import is_unicode

MOST_TEXTS = 128
"""Texts that a request may have."""


def encodable(text: str) -> str:
    """The text.

    Raises:
        ValueError: it isn't Unicode.
    """
    if not is_unicode(text):
        raise ValueError("expected Unicode text, found half of a surrogate pair")
    return text


Text = Annotated[str, AfterValidator(encodable)]
Name = Annotated[Text, Field(min_length=1, max_length=128, description="A task of the bundle.", examples=["spam"])]
Ids = Annotated[list[Annotated[int, Field(strict=True, ge=0, lt=2**31)]], Field(min_length=1)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=MOST_TEXTS)]
ManyIds = Annotated[list[Ids], Field(min_length=1, max_length=MOST_TEXTS)]


def _some(forms: str, one: str) -> BeforeValidator:
    """Say what is wrong with a field of several forms in one sentence; pydantic would say one for each form."""

    def check(value: object) -> object:
        if not isinstance(value, (str, list)):
            raise ValueError(f"expected {forms}, found {type(value).__name__}")
        if not value and isinstance(value, list):
            raise ValueError(f"expected at least one {one}, found none")
        if isinstance(value, list) and len(value) > MOST_TEXTS and not isinstance(value[0], int):
            raise ValueError(f"expected at most {MOST_TEXTS} texts, found {len(value)}")
        return value

    return BeforeValidator(check)


def _form(value: object) -> str:
    """The tag of a field's form: a list has that of its first element, so that any other is the one to blame."""
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, list):
        return "lists of token ids"
    if isinstance(first, (int, float)):
        return "token ids"
    return "list of texts" if isinstance(value, list) else "one text"


OneOrMoreTexts = Annotated[Text | Texts, _some("a text or texts", "text")]
TextsOrIds = Annotated[
    Annotated[Text, Tag("one text")]
    | Annotated[Texts, Tag("list of texts")]
    | Annotated[Ids, Tag("token ids")]
    | Annotated[ManyIds, Tag("lists of token ids")],
    Discriminator(_form),
    _some("a text, texts, token ids, or lists of them", "text or token"),
]


def as_list(given: TextsOrIds) -> list[str | list[int]]:
    """The inputs of a request as a list: each is a text, or the token ids that a client sends in its place."""
    if isinstance(given, str):
        return [given]
    numbers = [item for item in given if isinstance(item, int)]
    return [numbers] if numbers else [item for item in given if not isinstance(item, int)]


class Body(BaseModel):
    """A request's body. Unknown fields are ignored, since OpenAI's clients send more of them every year."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Answer(BaseModel):
    """A response's body."""

    model_config = ConfigDict(frozen=True)


class Usage(Answer):
    """Tokens read and generated."""

    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int

    @classmethod
    def of(cls, prompt: int, completion: int = 0) -> Usage:
        return cls(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


class ErrorDetail(Answer):
    """What is wrong, in words; and, where there is one, the field that is to blame and a code for programs."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(Answer):
    """Every error's body, as OpenAI's clients expect it."""

    error: ErrorDetail


class Model(Answer):
    """One task. The fields behind ``owned_by`` are weightpager's own.

    Attributes:
        kind: of the task.
        classes: that it tells apart.
        max_length: tokens of the longest text that it was compiled for; null for images.
        prompts: of text generation, ``chat`` where it learnt from conversations and ``plain`` where from other prompts.
        max_new_tokens: of text generation, the most tokens of an answer to a request that states no number.
        picture_tokens: tokens that a picture takes in a prompt at most; null where prompts have none.
        available: whether the server's budget has room for it.
        awake: whether its bundle is in memory; one that sleeps wakes with a request.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["weightpager"] = "weightpager"
    kind: str
    classes: list[str]
    max_length: int | None
    prompts: Literal["plain", "chat"] | None = None
    max_new_tokens: int | None = None
    picture_tokens: int | None = None
    available: bool
    awake: bool = True


class ModelList(Answer):
    """All tasks."""

    object: Literal["list"] = "list"
    data: list[Model]


def new_id(prefix: str) -> str:
    """A random id, which no other answer has."""
    return f"{prefix}-{secrets.token_hex(12)}"


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())
