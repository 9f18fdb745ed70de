"""Conversations from outside: lists of messages, checked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from weightpager.errors import shown

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
