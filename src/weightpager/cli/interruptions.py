"""Ctrl-C, even if a library turns it into an ordinary error."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptions() -> Iterator[None]:
    """Raise `KeyboardInterrupt` in place of any error that follows Ctrl-C.

    pydantic's serializer, for example, raises an error of its own when the Python code that it calls is interrupted.
    Nothing changes for a process that ignores Ctrl-C or has its own handler.
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
