"""Plain texts or images in, a task's answers out."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from weightpager.answers.begin import begin
from weightpager.answers.generation.completions import room_of
from weightpager.answers.kinds import kind_of
from weightpager.answers.kinds.kind import Prediction
from weightpager.answers.model import TaskModel
from weightpager.answers.query import BlockingQuery
from weightpager.answers.token_reader import TokenReader
from weightpager.answers.work import Generate, Work, needed
from weightpager.bundle import TaskEntry
from weightpager.config import is_unicode
from weightpager.errors import ConfigError, ImageError, RequestError, shown
from weightpager.readers.image_file import Frame
from weightpager.readers.messages import Messages, messages_of
from weightpager.readers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from weightpager.readers.chat_template import ChatTemplate

Conversation = Sequence[Mapping[str, str]]
"""Messages, each with a ``role`` and its ``content``."""

Input = str | Conversation | os.PathLike[str] | bytes | Frame
"""What a task is asked about: a text or a conversation; or an image by its path, by a file's content, or as a frame."""

_NEW_TOKENS = 32
"""Tokens that a text is continued by, unless the caller or the task says otherwise."""


def predict(
    model: TaskModel,
    reader: Any,
    task: TaskEntry,
    inputs: Iterable[Input],
    *,
    max_new_tokens: int | None = None,
    template: ChatTemplate | None = None,
) -> list[Prediction]:
    """Run a task's model on inputs, one at a time: a batch's padding would change the last bits of a result.

    Args:
        model: the task's, which is active.
        reader: the bundle's `Tokenizer`, or for images its `ImageReader`.
        task: whose answers are wanted.
        inputs: texts, or images: their paths, contents of their files, or frames. To a task whose prompts are
            conversations, each is what a user says, or a list of messages with a ``role`` and a ``content``.
        max_new_tokens: of a continuation; None for as many as the task states, or else 32, and as the model has room
            for.
        template: the tokenizer's, which writes conversations; None for one that ends with them.

    Raises:
        ConfigError: an input is nothing that the task reads, or there is one input in place of several; a text has no
            tokens, or with the continuation that is asked for more than the model can read; the model's chat template
            doesn't take it; fewer new tokens than one are asked for.
        BundleFormatError: the tokenizer knows words that the model doesn't.
        ImageError: an image can't be used; its path or its number is named.
    """
    listed = checked(task, inputs, max_new_tokens)
    kind = kind_of(task.kind)
    input_reader = reader if task.takes_images else TokenReader(reader, model.vocab_size)
    most = max_new_tokens
    if most is None:
        most = _NEW_TOKENS if task.generation is None else task.generation.max_new_tokens
    predictions = []
    for number, (given, asked) in enumerate(zip(listed, _asked(reader, task, listed, template), strict=True), 1):
        try:
            work = kind.read(input_reader, task, asked, most)
        except ImageError as error:
            raise ImageError(f"{_name(given) or f'image {number} of {len(listed)}'}: {error}") from error
        if isinstance(work, Generate) and max_new_tokens is None:
            work = work.within(room_of(model, reader))
        _check(work, f"text {number} of {len(listed)}", model, reader)
        query = BlockingQuery(work)
        run = begin(task.kind, model, reader, [query])
        while not query.over:
            run.step(math.inf)
        predictions.append(replace(kind.prediction(task, _name(given), query.outcome), truncated=work.truncated))
    return predictions


def checked(task: TaskEntry, inputs: Iterable[Input], max_new_tokens: int | None) -> list[Input]:
    """All inputs, if they and the number are what `predict` takes, as far as that can be said without the model.

    One input in place of several is refused: each character of a text, or each row of a frame, would be answered.

    Raises:
        ConfigError: they aren't.
    """
    if max_new_tokens is not None and max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens: expected at least 1, found {max_new_tokens}")
    if isinstance(inputs, (str, bytes, os.PathLike)) or (isinstance(inputs, np.ndarray) and inputs.ndim == 3):
        raise ConfigError(f"inputs: expected a list, such as [{shown(inputs)}], found {shown(inputs)} alone")
    listed = list(inputs)
    return [_checked(task, given, f"at {number} of {len(listed)}") for number, given in enumerate(listed, 1)]


def _checked(task: TaskEntry, given: Any, place: str) -> Input:
    """An input, if the task reads such ones."""
    if task.takes_conversations and isinstance(given, list):
        return _conversation(given, place)
    if not _suits(task, given):
        wanted = "images: paths, bytes or frames" if task.takes_images else "texts in Unicode"
        more = " or lists of messages" if task.takes_conversations else ""
        raise ConfigError(f"inputs: expected {wanted}{more}, found {shown(given)} {place}")
    return cast(Input, given)


def _conversation(given: list[Any], place: str) -> Messages:
    try:
        found = messages_of(given)
    except ValueError as error:
        raise ConfigError(f"inputs: {error} {place}") from error
    for message in found:
        if not is_unicode(message["content"]):
            raise ConfigError(f"inputs: expected messages in Unicode, found {shown(message)} {place}")
    return found


def _suits(task: TaskEntry, given: object) -> bool:
    """Whether an input can be read; a path may be any that the file system has."""
    if task.takes_images:
        return isinstance(given, (str, os.PathLike, bytes, np.ndarray))
    return isinstance(given, str) and is_unicode(given)


def _name(given: Any) -> str:
    """What a prediction calls its input: the text, an image's path, or a conversation's last message."""
    if isinstance(given, list):
        return str(given[-1]["content"])
    return "" if isinstance(given, (bytes, np.ndarray)) else os.fspath(given)


def _asked(tokenizer: Any, task: TaskEntry, inputs: list[Input], template: ChatTemplate | None) -> list[Any]:
    """What is read for the inputs: themselves, or texts of conversations, which a text is a user's message of."""
    if not task.takes_conversations:
        return inputs
    with _writing(tokenizer) if template is None else nullcontext(template) as chat:
        try:
            return [chat.render(_said(given)) for given in cast("list[str | Messages]", inputs)]
        except RequestError as error:
            raise ConfigError(str(error)) from error


def _writing(tokenizer: Any) -> AbstractContextManager[ChatTemplate]:
    from weightpager.readers.chat_template import MOST_CHARACTERS, ChatTemplate  # and multiprocessing with it

    return closing(ChatTemplate.of(tokenizer, MOST_CHARACTERS))


def _said(given: str | Messages) -> Messages:
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


def _check(work: Work, place: str, model: TaskModel, tokenizer: Tokenizer) -> None:
    if not work.tokens:
        raise ConfigError(f"{place}: expected at least one token, found none; leave empty lines out")
    if not isinstance(work, Generate):
        return
    room, wanted = room_of(model, tokenizer), work.max_new_tokens
    if work.tokens + wanted > room:
        found = needed(work.tokens, wanted, room)
        raise ConfigError(f"{place}: expected at most {room} tokens, as the model can read, found {found}")
