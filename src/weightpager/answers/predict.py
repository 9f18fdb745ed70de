"""Plain texts or images in, a task's answers out."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from weightpager.answers.batches import ALONE, Bounds, batches
from weightpager.answers.encoding import begin
from weightpager.answers.kept import NOTHING_KEPT, Kept
from weightpager.answers.kinds import Prediction, kind_of
from weightpager.answers.model import TaskModel
from weightpager.answers.query import BlockingQuery
from weightpager.answers.token_reader import Conversation, PicturePrompt, TokenReader
from weightpager.answers.work import GREEDY, Embed, Embedded, Generate, Outcome, Sampling, Work, continuation
from weightpager.bundle import TaskEntry
from weightpager.bundle.format.manifest import FORMS
from weightpager.config import is_unicode, stated_count
from weightpager.errors import ConfigError, ImageError, RequestError, shown
from weightpager.readers.chat_template import (
    MOST_CHARACTERS,
    ChatTemplate,
    Messages,
    PictureMessages,
    begun,
    conversation_of,
    joined,
    messages_of,
)
from weightpager.readers.image_reader import Frame
from weightpager.readers.picture import Picture
from weightpager.readers.tokenizer import Tokenizer

Input = str | Conversation | PicturePrompt | os.PathLike[str] | bytes | Frame
"""What a task is asked about: a text or a conversation, maybe with pictures; or an image by its path, by a file's
content, or as a frame."""

_Given = TypeVar("_Given")

_NEW_TOKENS = 32
"""Tokens that a text is continued by, unless the caller or the task says otherwise."""


@dataclass(frozen=True)
class Wanted:
    """How texts are continued. It says nothing to tasks that write none.

    Attributes:
        max_new_tokens: tokens of a continuation; None for as many as the task states, or else 32, and as the model has
            room for.
        sampling: how tokens are drawn.
        stop: texts that end a continuation, and are cut off with what follows.
    """

    max_new_tokens: int | None = None
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        max_new_tokens: int | None,
        temperature: float | None,
        top_p: float,
        seed: int | None,
        stop: str | Sequence[str] | None,
    ) -> Wanted:
        """What a caller asks for. Errors are those of `Sampling.of`, or a `ConfigError` of tokens or stop texts."""
        most = None if max_new_tokens is None else stated_count(max_new_tokens, "max_new_tokens")
        return cls(most, Sampling.of(temperature, top_p, seed), _stop_texts(stop))


UNSTATED = Wanted()
"""As a task states it, and greedily."""


def predict(
    model: TaskModel,
    reader: Any,
    task: TaskEntry,
    inputs: Iterable[Input],
    *,
    wanted: Wanted = UNSTATED,
    bounds: Bounds = ALONE,
    template: ChatTemplate | None = None,
    kept: Kept = NOTHING_KEPT,
) -> list[Prediction]:
    """Run a task's model on inputs. More than one at a time change the last bits of each other's results.

    Args:
        model: the task's, which is active.
        reader: the bundle's `Tokenizer`, or for images its `ImageReader`.
        task: whose answers are wanted.
        inputs: texts, or images: their paths, contents of their files, or frames. To a task whose prompts are
            conversations, each is what a user says, or a list of messages with a ``role`` and a ``content``. Where the
            model reads pictures among words, a `PicturePrompt`, too, or messages whose parts are images.
        wanted: how texts are continued.
        bounds: what runs together.
        template: the tokenizer's, which writes conversations; None for one that ends with them.
        kept: what may be taken over.

    Raises:
        ConfigError: an input is nothing that the task reads, or there is one input in place of several; a text has no
            tokens, or with the continuation that is asked for more than the model can read; the model's chat template
            doesn't take it.
        BundleFormatError: the tokenizer knows words that the model doesn't.
        ImageError: an image can't be used, or a text has places for others; its path or its number is named.
    """
    listed = checked(task, inputs)
    works = works_of(model, reader, task, listed, wanted, template)
    # Pixels take memory: only those of one batch are kept.
    with_pixels = task.takes_images or any(isinstance(each, PicturePrompt) for each in listed)
    chunks = _chunks(works, int(bounds.texts)) if with_pixels else [list(works)]
    outcomes = [outcome for chunk in chunks for outcome in _outcomes(task, model, reader, chunk, bounds, kept)]
    kind = kind_of(task.kind)
    return [
        replace(kind.prediction(task, _name(given), outcome), truncated=truncated)
        for given, (outcome, truncated) in zip(listed, outcomes, strict=True)
    ]


def works_of(
    model: TaskModel, reader: Any, task: TaskEntry, listed: list[Input], wanted: Wanted, template: ChatTemplate | None
) -> Iterator[Work]:
    """What each of the inputs that were `checked` asks of the task, read one by one. Errors are those of `predict`."""
    kind = kind_of(task.kind)
    input_reader = reader if task.takes_images else TokenReader(reader, model.vocab_size)
    most = wanted.max_new_tokens
    if most is None:
        most = _NEW_TOKENS if task.generation is None else task.generation.max_new_tokens
    texts = _asked(model, reader, task, listed, template)
    for number, (given, asked) in enumerate(zip(listed, texts, strict=True), 1):
        place = f"text {number} of {len(listed)}"
        try:
            work = kind.read(input_reader, task, asked, most)
        except ImageError as error:
            name = (_name(given) or f"image {number} of {len(listed)}") if task.takes_images else place
            raise ImageError(f"{name}: {error}") from error
        if isinstance(work, Generate):
            work = replace(work, sampling=wanted.sampling, stop=wanted.stop)
        work = _fitting(work, place, model, reader, wanted.max_new_tokens)
        if isinstance(work, Generate) and isinstance(asked, PicturePrompt):
            work = work.shown(_pictures(reader, asked, place), reader.pictures)
            work = _fitting(work, place, model, reader, wanted.max_new_tokens)
        yield work


def embed(
    model: TaskModel,
    tokenizer: Tokenizer,
    task: TaskEntry,
    texts: Iterable[str],
    *,
    bounds: Bounds = ALONE,
) -> npt.NDArray[np.float32]:
    """Vectors of texts, [texts, width].

    Args:
        model: the task's, which is active.
        tokenizer: of the bundle.
        task: that the texts are read with.
        texts: never cut; where a forward of it all is too large, a text is read in pieces if the model may.
        bounds: what runs together.

    Raises:
        ConfigError: a text is none, there is one in place of several, or one has no tokens or more than the model can
            read.
        BundleFormatError: the tokenizer knows words that the model doesn't.
    """
    listed = checked_texts(task, texts)
    reader = TokenReader(tokenizer, model.vocab_size)
    works = [
        _fitting(Embed(reader.whole(text)), f"text {number} of {len(listed)}", model, tokenizer)
        for number, text in enumerate(listed, 1)
    ]
    outcomes = _outcomes(task, model, tokenizer, works, bounds)
    vectors = [outcome.vector for outcome, _ in outcomes if isinstance(outcome, Embedded)]
    return np.array(vectors, np.float32).reshape(len(vectors), -1 if vectors else 0)


def _outcomes(
    task: TaskEntry,
    model: TaskModel,
    reader: Any,
    works: Sequence[Work],
    bounds: Bounds,
    kept: Kept = NOTHING_KEPT,
) -> list[tuple[Outcome, bool]]:
    bounds = replace(bounds, activations=model.limits.activations)
    if not task.takes_images:
        bounds = replace(bounds, uniform_length=model.limits.uniform_room(reader.longest), cache=model.cache)
    queries = [BlockingQuery(work, _in_pieces(task, model, work)) for work in works]
    for batch in batches(queries, bounds):
        run = begin(task.kind, model, reader, batch, kept)
        while not all(query.over for query in batch):
            run.step(math.inf)
    return [(query.outcome, query.work.truncated) for query in queries if query.outcome is not None]


def _in_pieces(task: TaskEntry, model: TaskModel, work: Work) -> bool:
    """Whether a text is read in pieces for its vector: by tasks that write, where a forward of it all is too large."""
    if not isinstance(work, Embed) or model.limits.activations.fit(1, work.tokens, work.tokens):
        return False
    return task.writes and model.limits.in_pieces


def _chunks(works: Iterator[Work], size: int) -> Iterator[list[Work]]:
    while chunk := list(islice(works, size)):
        yield chunk


def checked(task: TaskEntry, inputs: Iterable[Input], *, pictures: bool = True) -> list[Input]:
    """All inputs, if they are what `predict` takes, as far as that can be said without the model.

    One input in place of several is refused: each character of a text, or each row of a frame, would be answered.
    ``pictures`` says whether the model may read some among words.

    Raises:
        ConfigError: they aren't.
    """
    listed = _listed(inputs)
    pictures = pictures and bool(FORMS[task.kind].picture_model)
    return [_checked(task, given, f"at {number} of {len(listed)}", pictures) for number, given in enumerate(listed, 1)]


def checked_texts(task: TaskEntry, texts: Iterable[str]) -> list[str]:
    """All texts, if they are what `embed` takes, likewise.

    Raises:
        ConfigError: they aren't, or the task reads images.
    """
    if task.takes_images:
        raise ConfigError(f"expected a task that reads texts, found {task.name!r} of {task.kind}")
    listed = _listed(texts)
    for number, given in enumerate(listed, 1):
        if not _suits(task, given):
            raise ConfigError(f"inputs: expected texts in Unicode, found {shown(given)} at {number} of {len(listed)}")
    return listed


def check_writes(task: TaskEntry) -> None:
    """See that a task continues texts. Raises `ConfigError` if it doesn't."""
    if not task.writes:
        raise ConfigError(f"expected a task that generates text, found {task.name!r} of {task.kind}; call predict")


def _stop_texts(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(stop, (bytes, Mapping)) or not (stop is None or isinstance(stop, Iterable)):
        raise ConfigError(f"stop: expected a text or a list of texts, found {shown(stop)}")
    texts = (stop,) if isinstance(stop, str) else tuple(stop or ())
    for text in texts:
        if not isinstance(text, str) or not text:
            raise ConfigError(f"stop: expected texts that aren't empty, found {shown(text)}")
    return texts


def _listed(inputs: Iterable[_Given]) -> list[_Given]:
    alone = isinstance(inputs, (str, bytes, os.PathLike)) or (isinstance(inputs, np.ndarray) and inputs.ndim == 3)
    if alone:
        raise ConfigError(f"inputs: expected a list, such as [{shown(inputs)}], found {shown(inputs)} alone")
    if isinstance(inputs, Mapping) or not isinstance(inputs, Iterable):
        raise ConfigError(f"inputs: expected a list of texts or images, found {shown(inputs)}")
    return list(inputs)


def _checked(task: TaskEntry, given: Any, place: str, pictures: bool) -> Input:
    if pictures and isinstance(given, PicturePrompt):
        return _picture_prompt(task, given, place)
    return _words(task, given, place, pictures)


def _words(task: TaskEntry, given: Any, place: str, pictures: bool) -> Input:
    """A text, a conversation or an image: one without pictures beside it."""
    if task.takes_conversations and isinstance(given, list):
        return _conversation(given, place, pictures)
    if not _suits(task, given):
        wanted = "images: paths, bytes or frames" if task.takes_images else "texts in Unicode"
        more = " or lists of messages" if task.takes_conversations else ""
        raise ConfigError(f"inputs: expected {wanted}{more}, found {shown(given)} {place}")
    return cast(Input, given)


def _picture_prompt(task: TaskEntry, given: PicturePrompt, place: str) -> PicturePrompt:
    alone = isinstance(given.pictures, (str, bytes, os.PathLike, Mapping, np.ndarray))
    if alone or not isinstance(given.pictures, Iterable):
        found = shown(given.pictures)
        raise ConfigError(f"inputs: expected a list of pictures, such as [{found}], found {found} alone {place}")
    _words(task, given.text, place, pictures=True)
    return replace(given, pictures=tuple(given.pictures))


def _conversation(given: list[Any], place: str, pictures: bool) -> Messages | PicturePrompt:
    try:
        found = conversation_of(given) if pictures else PictureMessages(messages_of(given), ())
    except ValueError as error:
        raise ConfigError(f"inputs: {error} {place}") from error
    for message in found.messages:
        if not is_unicode(_said(message)):
            raise ConfigError(f"inputs: expected messages in Unicode, found {shown(message)} {place}")
    return PicturePrompt(given, ()) if found.pictures else found.messages


def _suits(task: TaskEntry, given: object) -> bool:
    """Whether an input can be read; a path may be any that the file system has."""
    if task.takes_images:
        return isinstance(given, (str, os.PathLike, bytes, np.ndarray))
    return isinstance(given, str) and is_unicode(given)


def _name(given: Any) -> str:
    """What a prediction calls its input: the text, an image's path, or a conversation's last message."""
    if isinstance(given, PicturePrompt):
        return _name(given.text)
    if isinstance(given, list):
        return _said(conversation_of(given).messages[-1])
    return "" if isinstance(given, (bytes, np.ndarray)) else os.fspath(given)


def _said(message: Mapping[str, Any]) -> str:
    """The text of a message alone."""
    content = message["content"]
    return content if isinstance(content, str) else joined(part["text"] for part in content if part["type"] == "text")


def _asked(
    model: TaskModel, tokenizer: Any, task: TaskEntry, inputs: list[Input], template: ChatTemplate | None
) -> list[Any]:
    """What is read for the inputs: themselves, or texts of conversations, which a text is a user's message of."""
    if not task.takes_conversations and not any(isinstance(given, PicturePrompt) for given in inputs):
        return inputs
    with _writing(tokenizer) if template is None and task.takes_conversations else nullcontext(template) as chat:
        try:
            places = [f"text {number} of {len(inputs)}" for number in range(1, len(inputs) + 1)]
            return [
                _read(model, tokenizer, chat, given, task.system, place)
                for given, place in zip(inputs, places, strict=True)
            ]
        except RequestError as error:
            raise ConfigError(str(error)) from error


def _read(
    model: TaskModel, tokenizer: Tokenizer, chat: ChatTemplate | None, given: Any, system: str | None, place: str
) -> str | PicturePrompt:
    """One input as the tokenizer takes it: a conversation as its template writes it, pictures beside it."""
    if not isinstance(given, PicturePrompt):
        return given if chat is None else chat.render(begun(_messages(given), system))
    reader, text, pictures = tokenizer.pictures, given.text, given.pictures
    if reader is None:
        raise ConfigError(f"{place}: expected texts alone, as the bundle's model reads, found pictures among them")
    try:
        if chat is not None:
            found = conversation_of(_messages(given.text)).given(pictures, reader.pictures.token)
            text, pictures = chat.render(begun(found.messages, system)), found.pictures
        reader.check_number(len(pictures), model.limits.room(tokenizer.longest))
    except ImageError as error:
        raise ImageError(f"{place}: {error}") from error
    return PicturePrompt(text, pictures)


def _pictures(tokenizer: Tokenizer, given: PicturePrompt, place: str) -> tuple[Picture, ...]:
    """The pictures of a prompt that there is room for."""
    assert tokenizer.pictures is not None
    found = []
    for number, source in enumerate(given.pictures, 1):
        try:
            found.append(tokenizer.pictures.read(source))
        except ImageError as error:
            raise ImageError(f"{place}: picture {number} of {len(given.pictures)}: {error}") from error
    return tuple(found)


def _writing(tokenizer: Any) -> AbstractContextManager[ChatTemplate]:
    return closing(ChatTemplate.of(tokenizer, MOST_CHARACTERS))


def _messages(given: Any) -> Messages:
    return [{"role": "user", "content": given}] if isinstance(given, str) else list(given)


def _fitting(work: Work, place: str, model: TaskModel, tokenizer: Any, wanted: int | None = None) -> Work:
    """A work that the model has room for; a continuation is cut to what is left unless its tokens are ``wanted``."""
    if not work.tokens:
        raise ConfigError(f"{place}: expected at least one token, found none; leave empty lines out")
    if not isinstance(work, (Generate, Embed)):  # others are cut
        return work
    room = model.limits.room(tokenizer.longest)
    if isinstance(work, Generate):
        try:
            return replace(work, max_new_tokens=continuation(work.tokens, room, work.max_new_tokens, wanted))
        except ValueError as error:
            found = str(error)
    elif work.tokens <= room:
        return work
    else:
        found = str(work.tokens)
    raise ConfigError(f"{place}: expected at most {room} tokens, as the model can read, found {found}")
