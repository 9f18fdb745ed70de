"""Names and times that answers carry."""

from __future__ import annotations

import secrets
import time


def new_id(prefix: str) -> str:
    """A random id, which no other answer has."""
    return f"{prefix}-{secrets.token_hex(12)}"


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())
