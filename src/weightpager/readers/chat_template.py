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
from typing import TYPE_CHECKING, Any

from weightpager.config import is_unicode
from weightpager.errors import RequestError, shortened, shown
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


def plain(messages: Sequence[Mapping[str, str]]) -> str:
    """A conversation as one prompt, without any template: the messages' texts, a new line between two of them."""
    return "\n".join(message["content"] for message in messages)


class ChatTemplate:
    """A bundle's chat template, rendered in a process of its own.

    A template is a program that came with the bundle. One that doesn't end, or fills memory, ends its process and
    nothing else: the next conversation gets another one. Safe to use from several threads, one at a time.
    """

    def __init__(
        self, source: str | None, tokens: Mapping[str, str], most_characters: int, seconds: float = _SECONDS
    ) -> None:
        """Nothing is started until a conversation comes.

        Args:
            source: the template; None if the model has none.
            tokens: the tokenizer's special ones, by name, which a template may use.
            most_characters: that a conversation may have, and that may come of it.
            seconds: of the processor's time that one may take.
        """
        self._source = source
        self._tokens = dict(tokens)
        self._most = most_characters
        self._seconds = seconds
        self._lock = threading.Lock()
        self._process: tuple[subprocess.Popen[bytes], Connection] | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer, most_characters: int) -> ChatTemplate:
        return cls(tokenizer.chat_template, tokenizer.special, most_characters)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """What is to be continued; without a template, the messages' texts, each with a new line behind it.

        Args:
            messages: each with a ``role`` and its ``content``.

        Raises:
            ConfigError: the package that renders templates isn't installed.
            RequestError: the template doesn't take such a conversation, or takes too much for it (`LIMIT`).
        """
        if self._source is None:
            return f"{plain(messages)}\n"
        check_installed("jinja2", "serve", "for a chat template")
        answer = self._answer(messages)
        if "limit" in answer:
            problem = f"the model's chat template took more than {answer['limit']} for these messages and was stopped"
            raise RequestError(problem, "messages", LIMIT)
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

    @uninterrupted
    def _answer(self, messages: Sequence[Mapping[str, str]]) -> dict[str, str]:
        if sum(len(message["content"]) for message in messages) > self._most:  # perhaps more than the process can read
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

Messages = list[dict[str, str]]


def messages_of(value: Any) -> Messages:
    """The messages of a conversation, each with its role and its text alone; parts of a text are put together.

    Raises:
        ValueError: it is none; says what was expected and what was found.
    """
    if not isinstance(value, list) or not value:
        raise ValueError(f"expected a list of messages, found {shown(value)}")
    return [_message(each) for each in value]


def joined(parts: Iterable[str]) -> str:
    """The text of a message that comes in parts."""
    return "".join(parts)


def _message(value: Any) -> dict[str, str]:
    text = _text(value.get("content")) if isinstance(value, dict) else None
    if text is None:
        raise ValueError(f"expected messages with a role and a content that is text, found {shown(value)}")
    called = next((name for name in _CALLS if value.get(name)), None)
    if called is not None:
        raise ValueError(f"expected messages that call no tools, found {called!r}")
    if value.get("role") not in ROLES:
        raise ValueError(f"expected a role of {', '.join(ROLES)}, found {shown(value.get('role'))}")
    return {"role": value["role"], "content": text}


def _text(content: Any) -> str | None:
    """A message's text; None if it has anything else."""
    if isinstance(content, list) and all(map(_is_text_part, content)):
        return joined(part["text"] for part in content)
    return content if isinstance(content, str) else None


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
