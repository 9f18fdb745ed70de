"""`Picture`: an image that stands among a prompt's words."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from weightpager.readers.image_processor import Pixels


class Picture:
    """An image that was decoded, and what a picture tower reads of it once somebody needs that.

    Attributes:
        key: 32 bytes: the same for the same decoded pixels and settings of the processor, and for no others.
    """

    def __init__(self, key: bytes, process: Callable[[], Pixels]) -> None:
        """``process`` gives the pixels; it is called once at most, and not at all where the features are kept."""
        self.key = key
        self._process = process

    def __repr__(self) -> str:
        return f"<Picture {self.key.hex()[:12]}>"

    @cached_property
    def pixels(self) -> Pixels:
        """Float32 [channels, height, width]."""
        found = self._process()
        self._process = lambda: found  # the decoded image isn't needed again
        return found
