"""Conversations from outside: lists of messages, checked."""

from __future__ import annotations

from typing import Any

from weightpager.errors import shown

ROLES = ("system", "developer", "user", "assistant")

Messages = list[dict[str, str]]


def messages_of(value: Any) -> Messages:
    """The messages of a conversation, each with its role and its text alone.

    Raises:
        ValueError: it is none; says what was expected and what was found.
    """
    if not isinstance(value, list) or not value:
        raise ValueError(f"expected a list of messages, found {shown(value)}")
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError(f"expected messages with a role and a content that is text, found {shown(message)}")
        if message.get("role") not in ROLES:
            raise ValueError(f"expected a role of {', '.join(ROLES)}, found {shown(message.get('role'))}")
    return [{"role": message["role"], "content": message["content"]} for message in value]
