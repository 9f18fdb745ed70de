"""LLaVA-NeXT's tiles: cut out of a picture, over Pillow and numpy, and their features put together as one picture's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from weightpager.bundle.format.manifest import PackedTiles
from weightpager.config import is_whole
from weightpager.errors import shown
from weightpager.readers.image_processor import MOST_SIDE, PACKED, Pixels, begins, normalised

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

Size = tuple[int, int]
"""Height and width, in pixels."""

_MOST_SIZES = 64


class PackedProcessor:
    """Cuts a picture into tiles, bit for bit as transformers' LLaVA-NeXT processor does.

    Attributes:
        side: of a tile.
        sizes: of whole tiles, of which the best for a picture is taken.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """``settings`` are those of ``preprocessor_config.json``, all stated, as transformers saves them.

        Raises:
            ValueError: they aren't those of such a processor, or absurd.
        """
        if not begins(settings, PACKED):
            raise ValueError(f"expected a LlavaNextImageProcessor, found {shown(settings.get('image_processor_type'))}")
        self._settings = settings
        stated = [settings.get(name) for name in ("size", "crop_size")]
        sides = {side for each in stated if isinstance(each, Mapping) for side in each.values() if side is not None}
        self.side = next(iter(sides), 0)
        if len(sides) != 1 or not is_whole(self.side) or not 1 <= self.side <= MOST_SIDE:
            raise ValueError(f"expected one side of 1 to {MOST_SIDE} in size and crop_size, found {shown(stated)}")
        found = settings.get("image_grid_pinpoints")
        pairs: list[Any] = list(found) if isinstance(found, (list, tuple)) else []
        if not 1 <= len(pairs) <= _MOST_SIZES or not all(map(self._is_whole, pairs)):
            expected = f"expected image_grid_pinpoints of 1 to {_MOST_SIZES} heights and widths of whole tiles"
            raise ValueError(f"{expected} of {self.side}, {MOST_SIDE} at most, found {shown(found)}")
        self.sizes: list[Size] = [(height, width) for height, width in pairs]

    def _is_whole(self, size: Any) -> bool:
        return (
            isinstance(size, (list, tuple))
            and len(size) == 2
            and all(is_whole(each) and 1 <= each <= MOST_SIDE and each % self.side == 0 for each in size)
        )

    def parts(self, image: PilImage) -> list[PilImage]:
        """The tiles of an image in RGB; that of the whole is first."""
        from PIL import Image

        height, width = best_size((image.height, image.width), self.sizes)
        across, down = width / image.width, height / image.height
        inner = width, min(math.ceil(image.height * across), height)
        if across >= down:
            inner = min(math.ceil(image.width * down), width), height
        padded = Image.new("RGB", (width, height))
        padded.paste(self._resized(image, *inner), ((width - inner[0]) // 2, (height - inner[1]) // 2))
        corners = [(x, y) for y in range(0, height, self.side) for x in range(0, width, self.side)]
        tiles = [padded.crop((x, y, x + self.side, y + self.side)) for x, y in corners]
        return [self._resized(image, self.side, self.side), *tiles]

    def pixels(self, parts: Sequence[PilImage]) -> Pixels:
        """Float32 [tiles, channels, height, width]."""
        return np.stack([normalised(np.moveaxis(np.array(part), -1, 0), self._settings) for part in parts])

    def _resized(self, image: PilImage, width: int, height: int) -> PilImage:
        return image.resize((width, height), self._settings.get("resample"))


def best_size(size: Size, sizes: Sequence[Size]) -> Size:
    """That of ``sizes`` in which most of a picture's pixels are kept, and among these the smallest."""
    height, width = size

    def kept(of: Size) -> int:
        scale = min(of[1] / width, of[0] / height)
        return min(int(width * scale) * int(height * scale), width * height)

    return max(sizes, key=lambda of: (kept(of), -math.prod(of)))


def tile_count(size: Size, tiles: PackedTiles) -> int:
    """Tiles of a picture of this size, that of the whole included."""
    return 1 + math.prod(each // tiles.side for each in best_size(size, tiles.sizes))


def packed(features: npt.NDArray[np.float32], size: Size, tiles: PackedTiles) -> npt.NDArray[np.float32]:
    """A picture's features, [tokens, width]: the whole's, and rows over all other tiles, each with an end behind it.

    What was padded isn't among them.

    Args:
        features: of its tiles, [tiles, features of a tile, width]; the last one of each ends rows.
        size: of the picture.
        tiles: how it becomes tiles.
    """
    return features.reshape(-1, features.shape[-1])[order(size, tiles)]


def order(size: Size, tiles: PackedTiles) -> npt.NDArray[np.int64]:
    """Which features of a picture's tiles, one after the other, stand in a text, int64 [tokens]."""
    count, (height, width) = tiles.patches**2, size
    rows, columns = (each // tiles.side for each in best_size(size, tiles.sizes))
    first = np.arange(1, rows * columns + 1).reshape(rows, columns, 1, 1) * (count + 1)
    placed = first + np.arange(count).reshape(tiles.patches, tiles.patches)
    grid = placed.transpose(0, 2, 1, 3).reshape(rows * tiles.patches, columns * tiles.patches)
    down, across = grid.shape
    if width / height > across / down:
        padding = (down - int(round(height * (across / width), 7))) // 2
        grid = grid[padding : down - padding]
    else:
        padding = (across - int(round(width * (down / height), 7))) // 2
        grid = grid[:, padding : across - padding]
    ends = np.full((len(grid), 1), count)
    return np.concatenate([np.arange(count), np.concatenate([grid, ends], 1).reshape(-1)])
