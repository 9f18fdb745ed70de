"""Rows of prompts and completions, or of conversations -> examples whose completions alone are learnt.

A row is ``prompt`` and ``completion``, both texts; or ``messages``, the last of which is the answer; or a ``prompt``
that is a list of messages, and its ``completion`` a text or a list of one message: the forms of files that OpenAI's and
TRL's fine-tuning read. A text is read as it is, a conversation as the model's chat template writes it, or without a
template the messages' texts, a new line behind each. What is learnt is the completion and the token that ends a text.

Where the model reads pictures among words, a row may have an ``image``, or ``images``, and a message parts that are
images. They stand where these parts are, or where a text has the model's placeholder, or else in front.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from weightpager.answers.generation import decoder_after
from weightpager.answers.kinds import IGNORED
from weightpager.answers.model import Integers
from weightpager.answers.query import padded
from weightpager.bundle import Generation
from weightpager.errors import CompileError, ImageError, RequestError, shown
from weightpager.readers.chat_template import (
    LIMIT,
    MOST_CHARACTERS,
    ChatTemplate,
    Messages,
    PictureMessages,
    conversation_of,
)
from weightpager.readers.picture_reader import PictureReader
from weightpager.readers.tokenizer import Tokenizer
from weightpager.task_data import texts
from weightpager.task_data.batches import Batches, Labelled
from weightpager.task_data.row_files import Row, read_rows
from weightpager.task_data.row_pictures import StoredPicture, of_columns, picture_inputs, stored
from weightpager.task_data.texts import Example

MESSAGES = "messages"

_APART = "\n"
"""A text whose tokens no tokenizer joins with those of the text behind it, as long as this begins with no new line."""

_TOOLS = ("tools", "functions")
"""Columns by which a conversation has tools, in the files of OpenAI's and TRL's fine-tuning."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompletionExample(Example):
    """A prompt with its completion; labels are `IGNORED` in the prompt.

    Attributes:
        prompt: its token ids.
        answer: the text of the completion, whole.
        chat: whether the prompt is a conversation.
        in_a_word: whether the completion of a text goes on with its last word.
        pictures: that stand in the prompt, each in its places.
    """

    prompt: tuple[int, ...]
    answer: str
    chat: bool
    in_a_word: bool
    pictures: tuple[StoredPicture, ...] = ()


@dataclass(frozen=True)
class Asked:
    """What is needed to have prompts answered: the model's tokenizer, and how answers are made and measured."""

    tokenizer: Tokenizer
    generation: Generation


@dataclass(frozen=True)
class CompletionReader:
    """Reads files of prompts and completions.

    Attributes:
        prompt, completion: names of the columns.
        tokenizer: of the model.
        max_length: tokens of prompt and completion, special ones included.
        bos: as of `Tokenizer.prompt`.
    """

    prompt: str
    completion: str
    tokenizer: Tokenizer
    max_length: int
    bos: bool = True

    def read(self, path: Path, where: str, most: int | None = None) -> tuple[CompletionExample, ...]:
        """The first ``most`` rows of a file, or all; errors speak of ``where``.

        A completion that ``max_length`` leaves no room for is cut, and its end isn't learnt; a prompt is never cut.

        Raises:
            CompileError: the file or a row has another form, a prompt leaves no room for a completion, something is
                empty, a picture can't be used, or the tokenizer names no token that ends a text.
        """
        if self.tokenizer.end_id is None:
            raise CompileError(f"{where}: expected a tokenizer that names a token which ends a text (eos_token)")
        rows = asked_and_answered(path, where, self.prompt, self.completion, most)
        with closing(ChatTemplate.of(self.tokenizer, MOST_CHARACTERS)) as template:
            items = [self._example(row, path.parent, template, f"{where}: row {n}") for n, row in enumerate(rows, 1)]
        if len({example.chat for example in items}) > 1:
            raise CompileError(f"{where}: expected prompts that all are texts or all are messages, found both")
        cut = sum(self.tokenizer.end_id != example.tokens[-1] for example in items)
        if cut:
            _log.warning("%s: %d of %d completions are cut at max_length %d", where, cut, len(items), self.max_length)
        return tuple(items)

    def _example(self, row: AskedRow, folder: Path, template: ChatTemplate, where: str) -> CompletionExample:
        asked, answer, pictures = self._with_pictures(row, folder, where)
        text = asked if isinstance(asked, str) else _rendered(template, asked, where)
        chat = not isinstance(asked, str)
        try:
            prompt = self.tokenizer.prompt(text, bos=self.bos, chat=chat, pictures=len(pictures))
            if self.tokenizer.pictures is not None:
                prompt = self.tokenizer.pictures.placed(prompt, pictures)
        except ImageError as error:
            raise CompileError(f"{where}: {error}") from error
        if not prompt or not text.strip():
            raise CompileError(f"{where}: expected a prompt, found an empty text")
        if not answer.strip():
            raise CompileError(f"{where}: expected a completion, found an empty text")
        self._check_room(len(prompt), where)
        learnt = self._ids(answer) if chat else self._following(text, prompt, answer)
        self._check_answer(learnt, where)
        completion = [*learnt, self._end][: self.max_length - len(prompt)]
        labels = [IGNORED] * len(prompt) + completion
        in_a_word = isinstance(asked, str) and (asked[-1] + answer[0]).isalnum()
        return CompletionExample([*prompt, *completion], labels, prompt, answer, chat, in_a_word, pictures)

    def _with_pictures(
        self, row: AskedRow, folder: Path, where: str
    ) -> tuple[str | Messages, str, tuple[StoredPicture, ...]]:
        """A row's prompt, its completion, and its pictures, of which a model that reads none leaves out the columns."""
        reader, asked = self.tokenizer.pictures, row.asked
        if reader is None:
            return asked if isinstance(asked, str) else _texts_alone(asked, where), row.answer, ()
        try:
            beside = row.beside()
            if not isinstance(asked, str):
                asked = asked.given(beside, reader.pictures.token)
            named = beside if isinstance(asked, str) else asked.pictures
            reader.check_number(len(named), min(self.max_length, self.tokenizer.longest))
        except (ValueError, ImageError) as error:
            raise CompileError(f"{where}: {error}") from error
        pictures = stored(named, folder, reader, where)
        return asked if isinstance(asked, str) else asked.messages, row.answer, pictures

    def _check_answer(self, learnt: Sequence[int], where: str) -> None:
        reader = self.tokenizer.pictures
        if reader is not None and reader.pictures.token_id in learnt:
            token = reader.pictures.token
            raise CompileError(f"{where}: expected a completion of words, found {token!r}, where a picture would stand")

    def _following(self, text: str, prompt: tuple[int, ...], answer: str) -> tuple[int, ...]:
        """The tokens of an answer that say, behind a prompt, that very answer.

        Some tokenizers put a blank before each text, Llama 2's for example. Tokens of the answer alone would then say a
        blank that the row doesn't have.
        """
        alone = self._ids(answer)
        said = decoder_after(self.tokenizer, prompt)
        if said(alone) == answer:
            return alone
        for before in (text, _APART):
            begun, whole = self._ids(before), self._ids(before + answer)
            rest = whole[len(begun) :]
            if whole[: len(begun)] == begun and said(rest) == answer:
                return rest
        return alone

    def _check_room(self, tokens: int, where: str) -> None:
        """Refuse a prompt of so many tokens if no completion fits behind it."""
        longest = self.tokenizer.longest
        if tokens < min(self.max_length, longest):
            return
        if self.max_length < longest:
            most, remedy = f"max_length {self.max_length}", "raise max_length, or leave the row out"
        else:
            most = f"the {longest} that the tokenizer says the model reads (model_max_length)"
            remedy = "leave the row out, or mend tokenizer_config.json if the model reads more"
        raise CompileError(
            f"{where}: expected a prompt of fewer tokens than {most}, so that a completion has room, found {tokens}; "
            f"{remedy}"
        )

    def _ids(self, text: str) -> tuple[int, ...]:
        return self.tokenizer.encode(text, special=False).ids

    @property
    def _end(self) -> int:
        assert self.tokenizer.end_id is not None
        return self.tokenizer.end_id


@dataclass(frozen=True)
class AskedRow:
    """A row's prompt, the text that completes it, and the row itself."""

    asked: str | PictureMessages
    answer: str
    given: Row

    def beside(self) -> list[Any]:
        """What the row says of its pictures beside its prompt. Errors are those of `of_columns`."""
        return of_columns(self.given)


def asked_and_answered(path: Path, where: str, prompt: str, completion: str, most: int | None) -> list[AskedRow]:
    """The prompts of a file's rows, and the text that completes each; no picture is looked for."""
    rows = read_rows(path, where, most=most)
    first = rows[0]
    in_one = _has_messages(first, prompt, completion)
    for column in (MESSAGES,) if in_one else (prompt, completion):
        if column not in first:
            both = f"{prompt!r} and {completion!r}, or {MESSAGES!r}"
            raise CompileError(f"{where}: expected columns {both}, found {', '.join(sorted(first))}")

    def pair(row: Row, where: str) -> AskedRow:
        _check_form(row, in_one, prompt, completion, where)
        if in_one or isinstance(row.get(prompt), list):
            _check_tools(row, where)
        if in_one:
            return AskedRow(*_parted(row.get(MESSAGES), where), row)
        return AskedRow(_asked(row.get(prompt), where), _answer(row.get(completion), where), row)

    return [pair(row, f"{where}: row {number}") for number, row in enumerate(rows, 1)]


def _has_messages(row: Row, prompt: str, completion: str) -> bool:
    return MESSAGES not in (prompt, completion) and row.get(MESSAGES) is not None


def _check_form(row: Row, in_one: bool, prompt: str, completion: str, where: str) -> None:
    """Refuse a row of both forms, or of the other one than the first row."""
    pair, own = f"{prompt!r} and {completion!r}", repr(MESSAGES)
    has_pair = row.get(prompt) is not None or row.get(completion) is not None
    has_messages = _has_messages(row, prompt, completion)
    if has_pair and has_messages:
        raise CompileError(f"{where}: expected either {pair} or {own}, found both; leave one of them out")
    if (in_one and has_pair) or (has_messages and not in_one):
        first, other = (own, pair) if in_one else (pair, own)
        raise CompileError(
            f"{where}: expected {first}, as the first row has, found {other}; keep rows of one form in a file"
        )


def _check_tools(row: Row, where: str) -> None:
    """Refuse a conversation with tools: its template would write what the tasks here never see."""
    tools = next((name for name in _TOOLS if row.get(name)), None)
    if tools is not None:
        raise CompileError(f"{where}: expected a conversation without tools, found {tools!r}; leave the row out")


def prompts(examples: Sequence[Any], size: int, pad: int, pictures: PictureReader | None = None) -> Batches[Labelled]:
    """Batches of prompts to be answered, those of similar length together, padded on the left; and what is wanted.

    Pictures are read when a batch is asked for.
    """
    ordered = sorted(examples, key=lambda example: len(example.prompt))
    parts = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    return Batches(parts, partial(_asking, pad=pad, pictures=pictures))


def form(examples: Sequence[Any]) -> Literal["plain", "chat"]:
    """The form of a file's prompts: texts, or conversations."""
    return "chat" if examples[0].chat else "plain"


def collate(examples: Sequence[CompletionExample], pad: int, pictures: PictureReader | None = None) -> Labelled:
    """One batch to learn from, as of `texts.collate`, with the pixels of its pictures.

    Raises:
        CompileError: a picture can't be read any more.
    """
    inputs, labels = texts.collate(examples, pad)
    return {**inputs, **_pixels(examples, inputs["input_ids"], pictures)}, labels


def _asking(examples: Sequence[CompletionExample], pad: int, pictures: PictureReader | None) -> Labelled:
    inputs = padded([example.prompt for example in examples], pad, left=True)
    return {**inputs, **_pixels(examples, inputs["input_ids"], pictures)}, tuple(example.answer for example in examples)


def _pixels(
    examples: Sequence[CompletionExample], ids: Integers, reader: PictureReader | None
) -> dict[str, npt.NDArray[Any]]:
    """What a batch's pictures add to its inputs; nothing where there is no picture."""
    found = [picture for example in examples for picture in example.pictures]
    if not found:
        return {}
    assert reader is not None
    return picture_inputs(found, reader, ids)


def _parted(value: Any, where: str) -> tuple[PictureMessages, str]:
    """A conversation's messages before the last one, and the text of this one, which is the assistant's."""
    found = _conversation(value, where)
    messages = found.messages
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        roles = ", ".join(message["role"] for message in messages)
        raise CompileError(f"{where}: expected messages of which the last is the assistant's answer, found {roles}")
    if value[-1].get("weight") == 0:
        raise CompileError(f"{where}: expected an answer to learn from, found one of weight 0; leave the row out")
    return PictureMessages(messages[:-1], found.pictures), _answered(messages[-1], where)


def _asked(value: Any, where: str) -> str | PictureMessages:
    if isinstance(value, list):
        return _conversation(value, where)
    return _text(value, "prompt", where)


def _answer(value: Any, where: str) -> str:
    if not isinstance(value, list):
        return _text(value, "completion", where)
    messages = _conversation(value, where).messages
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise CompileError(f"{where}: expected a completion of one message of the assistant, found {shown(value)}")
    return _answered(messages[0], where)


def _answered(message: Mapping[str, Any], where: str) -> str:
    content = message["content"]
    if not isinstance(content, str):
        raise CompileError(f"{where}: expected an answer that is text, found {shown(content)}")
    return content


def _text(value: Any, what: str, where: str) -> str:
    if not isinstance(value, str):
        raise CompileError(f"{where}: expected a {what} that is text or a list of messages, found {shown(value)}")
    return value


def _conversation(value: Any, where: str) -> PictureMessages:
    try:
        return conversation_of(value)
    except ValueError as error:
        raise CompileError(f"{where}: {error}") from error


def _texts_alone(asked: PictureMessages, where: str) -> Messages:
    """The messages of a conversation for a model that reads no pictures."""
    other = next((message for message in asked.messages if not isinstance(message["content"], str)), None)
    if other is not None:
        expected = "expected messages with a role and a content that is text"
        raise CompileError(f"{where}: {expected}, as the model reads, found {shown(other)}")
    return asked.messages


def _rendered(template: ChatTemplate, messages: Messages, where: str) -> str:
    try:
        return template.render(messages)
    except RequestError as error:
        remedy = "; write the prompt as a text, or mend chat_template" if error.code == LIMIT else ""
        raise CompileError(f"{where}: {error}{remedy}") from error
