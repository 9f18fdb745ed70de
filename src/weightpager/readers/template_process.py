"""The process that renders a bundle's chat template: it may be killed at any time, and holds nothing but the template.

The environment is that of transformers' ``apply_chat_template``, whose own import would take hundreds of megabytes.
"""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Callable, Iterable
from datetime import datetime
from multiprocessing.connection import Connection
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

_MEMORY = 2**28
"""Bytes of addresses that the process may use, beside those for the texts."""

_COPIES = 16
"""Bytes for each character of the longest text, which is there several times."""


def serve(descriptor: int) -> None:
    """Render conversations until the other end of a connection is closed.

    First come the template, the most characters that may come of it, and the seconds of the processor's time that it
    may take: the system ends the process then. After that one conversation after the other is answered by a text, or by
    what is wrong with it. All are JSON.
    """
    connection = Connection(descriptor)
    settings = json.loads(connection.recv_bytes())
    memory = _MEMORY + _COPIES * settings["most_characters"]
    for limit, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        resource.setrlimit(limit, (most, most))
    render = _Renderer(settings["template"], settings["most_characters"])
    while True:
        try:
            given = connection.recv_bytes()
        except EOFError:
            return
        connection.send_bytes(_answer(render, given, settings["seconds"]))


def _answer(render: Callable[[Any], str], given: bytes, seconds: float) -> bytes:
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        return json.dumps(_rendered(render, json.loads(given))).encode()
    except MemoryError:
        return b'{"limit": "the memory that it may use"}'
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _rendered(render: Callable[[Any], str], given: Any) -> dict[str, str]:
    try:
        return {"text": render(given)}
    except MemoryError:
        raise
    except OverflowError as error:
        return {"limit": str(error)}
    except Exception as error:  # noqa: BLE001 - whatever a template raises
        return {"error": str(error) or type(error).__name__}


class _Renderer:
    """A template, compiled when it is first asked for: that may take for ever too."""

    def __init__(self, template: str, most_characters: int) -> None:
        self._source = template
        self._most = most_characters
        self._template: Template | None = None

    def __call__(self, given: dict[str, Any]) -> str:
        if self._template is None:
            self._template = environment().from_string(self._source)
        return self._joined(self._template.generate(given))

    def _joined(self, parts: Iterable[str]) -> str:
        pieces: list[str] = []
        length = 0
        for part in parts:
            pieces.append(part)
            length += len(part)
            if length > self._most:
                raise OverflowError(f"a text of {self._most} characters")
        return "".join(pieces)


def environment() -> ImmutableSandboxedEnvironment:
    """What chat templates are written for."""
    jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    jinja.filters["tojson"] = _to_json
    jinja.globals["raise_exception"] = _refuse
    jinja.globals["strftime_now"] = _now
    jinja.globals["namespace"] = _Namespace
    return jinja


class _Generation(Extension):
    """``{% generation %}`` marks what an assistant said; here it means nothing."""

    tags = {"generation"}  # noqa: RUF012 - as jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """One without the attributes that Python's own objects have."""

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"expected the name of a namespace's value, found {name!r}")
        super().__setitem__(name, value)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
