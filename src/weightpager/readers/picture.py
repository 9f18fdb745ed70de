"""`Picture`: an image that stands among a prompt's words."""

from __future__ import annotations

from collections.abc import Callable

from weightpager.readers.image_processor import Pixels
from weightpager.readers.packed_tiles import Size
from weightpager.readers.patch_processor import Grid


class Picture:
    """An image that was decoded, and what a picture tower reads of it once somebody needs that.

    Attributes:
        key: 32 bytes: the same for the same decoded pixels and settings of the processor, and for no others.
        tokens: the places that it takes in a text.
        grid: rows and columns of these; None where it is no run of patches.
        tiles: rows and columns of its tiles; None where none stand between words.
        size: its height and width; None where no features of tiles are put together.
    """

    def __init__(
        self,
        key: bytes,
        process: Callable[[], Pixels],
        tokens: int,
        grid: Grid | None = None,
        tiles: Grid | None = None,
        size: Size | None = None,
    ) -> None:
        """``process`` gives the pixels; it is called once at most, and not at all where the features are kept."""
        self.key, self.tokens, self.grid, self.tiles, self.size = key, tokens, grid, tiles, size
        self._process = process

    def __repr__(self) -> str:
        return f"<Picture {self.key.hex()[:12]}>"

    @property
    def is_scaled(self) -> bool:
        """Whether it holds nothing but an image of the size that its pixels have."""
        return (self.grid, self.tiles, self.size) != (None, None, None)

    @property
    def pixels(self) -> Pixels:
        """Float32 [channels, height, width], before these [tiles] where it has any.

        Of a run of patches [places, patches of a place, numbers of a patch].
        """
        found = self._process()
        if not self.is_scaled:  # a scaled image takes a fourth of it, or less
            self._process = lambda: found  # the decoded image isn't needed again
        return found
