"""Conversations in, the texts that a model was trained to go on with out."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from weightpager.config import is_unicode
from weightpager.errors import ImageError, RequestError, shortened, shown
from weightpager.interrupts import acquired, in_slices, uninterrupted
from weightpager.machine.packages import check_installed
from weightpager.readers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

_SECONDS = 2.0
"""Of the processor's time that one conversation may take."""

_PATIENCE = 30.0
"""Seconds on the clock, for a process that starts, or gets little of the processor."""

_GRACE = 0.5
"""Seconds for it to end by itself, once nobody talks to it."""

_MOST_OF_AN_ERROR = 400

LIMIT = "chat_template_limit"
"""Code of the error that a template takes too much for a conversation."""

MOST_CHARACTERS = 2**20
"""Of a conversation that comes from whoever runs this process."""

_START = """
import sys
descriptor, sys.path[:] = int(sys.argv[1]), sys.argv[2:]
from weightpager.readers.template_process import serve
serve(descriptor)
"""

_log = logging.getLogger(__name__)


Part = Mapping[str, str]
"""``{"type": "text", "text": …}``, or ``{"type": "image"}`` where a picture stands."""

Messages = list[dict[str, Any]]
"""Each with a ``role`` and a ``content``: a text, or a list of `Part` where pictures are among the words."""


def plain(messages: Sequence[Mapping[str, Any]], placeholder: str = "") -> str:
    """A conversation as one prompt, without any template: the messages' texts, a new line between two of them.

    A picture is its placeholder, as it is in front of a text that isn't part of any conversation.
    """
    return "\n".join(_flat(message["content"], placeholder) for message in messages)


def begun(messages: Sequence[Mapping[str, Any]], system: str | None) -> Sequence[Mapping[str, Any]]:
    """A conversation that begins with a task's system message, unless it brings one of its own."""
    if system is None or (messages and messages[0]["role"] in ("system", "developer")):
        return messages
    return [{"role": "system", "content": system}, *messages]


class ChatTemplate:
    """A bundle's chat template, rendered in a process of its own.

    A template is a program that came with the bundle. One that doesn't end, or fills memory, ends its process and
    nothing else: the next conversation gets another one. Safe to use from several threads, one at a time.
    """

    def __init__(
        self,
        source: str | None,
        tokens: Mapping[str, str],
        most_characters: int,
        seconds: float = _SECONDS,
        placeholder: str | None = None,
    ) -> None:
        """Nothing is started until a conversation comes.

        Args:
            source: the template; None if the model has none.
            tokens: the tokenizer's special ones, by name, which a template may use.
            most_characters: that a conversation may have, and that may come of it.
            seconds: of the processor's time that one may take.
            placeholder: the text of a picture's place; None if the model reads no pictures.
        """
        self._source = source
        self._tokens = dict(tokens)
        self._most = most_characters
        self._seconds = seconds
        self._placeholder = placeholder
        self._lock = threading.Lock()
        self._process: tuple[subprocess.Popen[bytes], Connection] | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer, most_characters: int) -> ChatTemplate:
        placeholder = None if tokenizer.pictures is None else tokenizer.pictures.pictures.token
        return cls(tokenizer.chat_template, tokenizer.special, most_characters, placeholder=placeholder)

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """What is to be continued; without a template, the messages' texts, each with a new line behind it.

        A placeholder stands where a picture is: where the template writes it, if it knows parts, and else in front of
        the text behind it, in a line of its own.

        Raises:
            ConfigError: the package that renders templates isn't installed.
            RequestError: the template doesn't take such a conversation, or takes too much for it (`LIMIT`).
        """
        if self._source is None:
            return f"{plain(messages, self._in_a_line)}\n"
        check_installed("jinja2", "serve", "for a chat template")
        if self._placeholder is not None:
            messages = self._as_known(messages)
        answer = self._within_limits(messages)
        if "error" in answer or not is_unicode(answer["text"]):
            problem = shortened(answer.get("error", "it wrote half of a surrogate pair"), _MOST_OF_AN_ERROR)
            raise RequestError(f"expected messages that the model's chat template takes: {problem}", "messages")
        return answer["text"]

    def close(self) -> None:
        """End the process, if there is one, whatever it does."""
        if self._process is not None:
            self._process[0].kill()
        with uninterrupted, acquired(self._lock):
            self._end()

    @property
    def _in_a_line(self) -> str:
        return f"{self._placeholder}\n"

    def _as_known(self, messages: Sequence[Mapping[str, Any]]) -> Messages:
        """Messages in the forms that the template knows: some read parts alone, and leave out a text that is none."""
        if not self._writes_pictures:
            return [{**message, "content": _flat(message["content"], self._in_a_line)} for message in messages]
        texts = self._writes_texts
        return [
            {**message, "content": _parts(content) if isinstance(content, str) and not texts else content}
            for message in messages
            for content in [message["content"]]
        ]

    @cached_property
    def _writes_pictures(self) -> bool:
        """Whether the template writes a placeholder for a part that is a picture."""
        return self._tried([*_images(1), *_parts(_TRIED)]).count(self._placeholder or "") == 1

    @cached_property
    def _writes_texts(self) -> bool:
        """Whether the template writes a text that isn't in parts."""
        return _TRIED in self._tried(_TRIED)

    def _tried(self, content: str | list[Part]) -> str:
        """What the template makes of a content; empty where it refuses it, or leaves out its text."""
        # One that was stopped has said nothing: whoever comes next tries again.
        text = self._within_limits([{"role": "user", "content": content}]).get("text", "")
        return text if _TRIED in text else ""

    def _within_limits(self, messages: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """The template's text or error; a `RequestError` where it was stopped."""
        answer = self._answer(messages)
        if "limit" in answer:
            problem = f"the model's chat template took more than {answer['limit']} for these messages and was stopped"
            raise RequestError(problem, "messages", LIMIT)
        return answer

    @uninterrupted
    def _answer(self, messages: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        characters = sum(len(_flat(message["content"], "")) for message in messages)
        if characters > self._most:  # perhaps more than the process can read
            return {"limit": f"a text of {self._most} characters"}
        given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True, **self._tokens}
        with acquired(self._lock):
            try:
                return self._ask(json.dumps(given).encode())
            except BaseException:  # Ctrl-C, say: an answer that nobody has taken would be the next one's
                if self._process is not None:
                    self._process[0].kill()
                self._end()
                raise

    def _ask(self, question: bytes) -> dict[str, str]:
        try:
            connection = self._connection()
            connection.send_bytes(question)
            if in_slices(connection.poll, _PATIENCE):
                found: dict[str, str] = json.loads(connection.recv_bytes())
                return found
        except (EOFError, OSError):  # it has ended, most likely because its time was over
            pass
        status = self._end()
        if status not in (-signal.SIGPROF, -signal.SIGKILL):
            raise RuntimeError(f"the process for chat templates ended with status {status}")
        _log.warning("the bundle's chat template was stopped, since it took too long")
        return {"limit": f"{self._seconds:g} s of computing"}

    def _connection(self) -> Connection:
        """To the process, started now if it isn't there."""
        if self._process is not None and self._process[0].poll() is not None:
            self._end()
        if self._process is None:
            from multiprocessing import Pipe  # most processes need none

            ours, theirs = Pipe()
            # With this process's path, so that it finds the same packages, and nothing in the folder it is started in.
            command = [sys.executable, "-I", "-c", _START, str(theirs.fileno()), *sys.path]
            with theirs:
                process = subprocess.Popen(  # noqa: S603 - our own
                    command,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is the server's
                )
            self._process = process, ours
            settings = {"template": self._source, "most_characters": self._most, "seconds": self._seconds}
            ours.send_bytes(json.dumps(settings).encode())
        return self._process[1]

    def _end(self) -> int | None:
        """The process's status; None if there is no process."""
        if self._process is None:
            return None
        process, connection = self._process
        self._process = None
        connection.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(_GRACE)
        process.kill()
        return process.wait()


ROLES = ("system", "developer", "user", "assistant")

_CALLS = ("tool_calls", "function_call")
"""By which a message calls tools."""

_TRIED = "weightpager"
"""A text to try a template with."""


@dataclass(frozen=True)
class PictureMessages:
    """A conversation with pictures.

    Attributes:
        messages: whose parts say only where pictures stand.
        pictures: what each of these parts says of its picture, in order; None where it says nothing.
    """

    messages: Messages
    pictures: tuple[Any, ...]

    def given(self, more: Sequence[Any], placeholder: str) -> PictureMessages:
        """The same with pictures that came beside it.

        They are those of which parts say nothing. Where no part is a picture, they stand in front of the first message
        of the user, unless texts have placeholders already.

        Raises:
            ImageError: they are more or fewer than these parts.
        """
        if not self.pictures:
            has_places = any(placeholder in message["content"] for message in self.messages)
            return PictureMessages(
                self.messages if has_places or not more else _in_front(self.messages, more), tuple(more)
            )
        unnamed = sum(picture is None for picture in self.pictures)
        if unnamed != len(more):
            expected = f"expected as many pictures beside the messages as parts that name none, {unnamed}"
            raise ImageError(f"{expected}, found {len(more)}")
        beside = iter(more)
        return PictureMessages(
            self.messages, tuple(next(beside) if picture is None else picture for picture in self.pictures)
        )


def messages_of(value: Any) -> Messages:
    """The messages of a conversation, each with its role and its text alone; parts of a text are put together.

    Raises:
        ValueError: it is none, or has pictures; says what was expected and what was found.
    """
    found = conversation_of(value)
    for given, message in zip(value, found.messages, strict=True):
        if not isinstance(message["content"], str):
            raise _no_text(given)
    return found.messages


def conversation_of(value: Any) -> PictureMessages:
    """A conversation whose messages are texts, or parts that are texts and pictures.

    A picture is ``{"type": "image"}``, which may say which one it is (``"image": …``, or ``url``, ``path`` or
    ``base64``), or ``{"type": "image_url", "image_url": {"url": …}}``.

    Raises:
        ValueError: it is none; says what was expected and what was found.
    """
    if not isinstance(value, list) or not value:
        raise ValueError(f"expected a list of messages, found {shown(value)}")
    pictures: list[Any] = []
    messages = [_message(each, pictures) for each in value]
    return PictureMessages(messages, tuple(pictures))


def joined(parts: Iterable[str]) -> str:
    """The text of a message that comes in parts."""
    return "".join(parts)


def _message(value: Any, pictures: list[Any]) -> dict[str, Any]:
    content = _content(value.get("content"), pictures) if isinstance(value, dict) else None
    if content is None:
        raise _no_text(value)
    called = next((name for name in _CALLS if value.get(name)), None)
    if called is not None:
        raise ValueError(f"expected messages that call no tools, found {called!r}")
    if value.get("role") not in ROLES:
        raise ValueError(f"expected a role of {', '.join(ROLES)}, found {shown(value.get('role'))}")
    return {"role": value["role"], "content": content}


def _no_text(value: Any) -> ValueError:
    return ValueError(f"expected messages with a role and a content that is text, found {shown(value)}")


def _content(content: Any, pictures: list[Any]) -> str | list[Part] | None:
    """A message's text, or its parts if some are pictures, which are added; None if it has anything else."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    if all(map(_is_text_part, content)):
        return joined(part["text"] for part in content)
    parts: list[Part] = []
    for part in content:
        named = _named(part)
        if _is_text_part(part):
            parts += _parts(part["text"])
        elif named is not None and len(named) <= 1:
            parts += _images(1)
            pictures.append(next(iter(named), None))
        else:
            return None
    return parts


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _named(part: Any) -> list[Any] | None:
    """What a part says of its picture, which should be one thing at most; None if it is no picture."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("image", "image_url"):
        return None
    # Parquet's columns have all fields in all rows.
    found = [part[key] for key in ("image", "url", "path") if part.get(key) is not None]
    if part.get("base64") is not None:
        found.append(f"data:image/png;base64,{part['base64']}")
    if (stated := part.get("image_url")) is not None:
        found.append(stated.get("url") if isinstance(stated, dict) else stated)
    return None if kind == "image_url" and not any(isinstance(each, str) for each in found) else found


def _parts(text: str) -> list[Part]:
    return [{"type": "text", "text": text}]


def _images(number: int) -> list[Part]:
    return [{"type": "image"} for _ in range(number)]


def _flat(content: str | Sequence[Part], placeholder: str) -> str:
    """A message's content as a text."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] if part["type"] == "text" else placeholder for part in content)


def _in_front(messages: Messages, pictures: Sequence[Any]) -> Messages:
    """The same with so many pictures in front of what the user says first."""
    first = next((place for place, message in enumerate(messages) if message["role"] == "user"), 0)
    text = _parts(messages[first]["content"]) if messages[first]["content"] else []
    content = [*_images(len(pictures)), *text]
    return [*messages[:first], {**messages[first], "content": content}, *messages[first + 1 :]]
