"""Ctrl-C, also where a library makes an ordinary error of it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptions() -> Iterator[None]:
    """Let any error that follows Ctrl-C be a `KeyboardInterrupt`.

    pydantic's serializer, for one, raises an error of its own when the Python code that it calls is interrupted. A
    process that ignores Ctrl-C, or that handles it in its own way, goes on doing so.
    """
    came = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield
    except Exception as error:
        if came:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
