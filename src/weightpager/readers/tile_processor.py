"""`TileProcessor`: a picture of any size as tiles of one size, over Pillow and numpy, and the words between them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from weightpager.bundle.format.manifest import Pictures
from weightpager.config import is_whole
from weightpager.errors import shown
from weightpager.readers.image_processor import MOST_SIDE, TILES, Pixels, begins, normalised
from weightpager.readers.patch_processor import CHANNELS, Grid

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

_MOST_A_SIDE = 16
"""Tiles; models have learnt words for six rows and columns."""


class TileProcessor:
    """Scales a picture to whole tiles and cuts it, bit for bit as transformers' Idefics3 and SmolVLM processors do.

    Attributes:
        side: of a tile.
        a_side: tiles in a row, and in a column, at most.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """``settings`` are those of ``preprocessor_config.json``, all stated, as transformers saves them.

        Raises:
            ValueError: they aren't those of such a processor, or absurd.
        """
        if not begins(settings, TILES) or not settings.get("do_resize") or settings.get("do_center_crop"):
            names = " or ".join(f"{begin}ImageProcessor" for begin in TILES)
            found = settings.get("image_processor_type")
            raise ValueError(f"expected {names} that scales pictures (do_resize) and crops none, found {shown(found)}")
        self._settings = settings
        self._longest, self.side = _edge(settings, "size"), _edge(settings, "max_image_size")
        self._splits = bool(settings.get("do_image_splitting"))
        self.a_side = -(-(self._longest + self._longest % 2) // self.side) if self._splits else 1
        if self.a_side > _MOST_A_SIDE:
            most = f"{_MOST_A_SIDE * self.side}, {_MOST_A_SIDE} tiles a side"
            raise ValueError(f"expected a size.longest_edge of at most {most}, found {self._longest}")
        zeros = normalised(np.tile(np.arange(256, dtype=np.uint8), (CHANNELS, 1, 1)), settings) == 0
        if zeros.any(-1).all():
            raise ValueError(
                "expected image_mean and image_std that make no colour zero in all channels, since transformers takes "
                "a tile of zeros for padding, found others"
            )

    @property
    def most(self) -> int:
        """Tiles of a picture at most, that of the whole included."""
        return tiles_of((self.a_side, self.a_side))

    def scaled(self, image: PilImage) -> PilImage:
        """An image of whole tiles."""
        width, height = image.size
        aspect = width / height
        if width >= height:
            width, height = self._longest, int(self._longest / aspect)
            height += height % 2
        else:
            width, height = int(self._longest * aspect), self._longest
            width += width % 2
        image = self._resized(image, max(width, 1), max(height, 1))
        if not self._splits:
            return self._resized(image, self.side, self.side)
        width, height = image.size
        aspect = width / height
        if width >= height:
            width = self._whole(width)
            height = self._whole(int(width / aspect))
        else:
            height = self._whole(height)
            width = self._whole(int(height * aspect))
        return self._resized(image, width, height)

    def grid(self, image: PilImage) -> Grid:
        """Rows and columns of an image that is `scaled`."""
        return image.height // self.side, image.width // self.side

    def tiles(self, image: PilImage) -> Pixels:
        """The tiles of a `scaled` image in RGB, float32 [tiles, channels, height, width]; that of the whole is last."""
        (rows, columns), side = self.grid(image), self.side
        parts = [self._resized(image, side, side)]
        if (rows, columns) != (1, 1):
            corners = [(column * side, row * side) for row in range(rows) for column in range(columns)]
            parts = [*(image.crop((x, y, x + side, y + side)) for x, y in corners), *parts]
        return np.stack([normalised(np.moveaxis(np.array(part), -1, 0), self._settings) for part in parts])

    def _whole(self, length: int) -> int:
        return math.ceil(length / self.side) * self.side

    def _resized(self, image: PilImage, width: int, height: int) -> PilImage:
        return image.resize((width, height), self._settings.get("resample"))


def tiles_of(grid: Grid) -> int:
    """Tiles of a picture of so many rows and columns; one alone shows the whole."""
    return 1 if grid == (1, 1) else math.prod(grid) + 1


def tile_text(grid: Grid, pictures: Pictures) -> str:
    """The text of a picture of so many rows and columns of tiles, with one placeholder for all places of a tile."""
    assert pictures.tiles is not None
    border, token, (rows, columns) = pictures.tiles.border, pictures.token, grid
    whole = f"{border}{pictures.tiles.whole}{token}{border}"
    if grid == (1, 1):
        return whole
    each = (
        "".join(f"{border}<row_{row}_col_{column}>{token}" for column in range(1, columns + 1))
        for row in range(1, rows + 1)
    )
    return "".join(f"{row}\n" for row in each) + f"\n{whole}"


def _edge(settings: Mapping[str, Any], name: str) -> int:
    found = settings.get(name)
    stated = {key: value for key, value in found.items() if value is not None} if isinstance(found, Mapping) else {}
    edge: Any = stated.get("longest_edge")
    if len(stated) != 1 or not is_whole(edge) or not 1 <= edge <= MOST_SIDE:
        raise ValueError(f"expected {name} of a longest_edge of 1 to {MOST_SIDE}, found {shown(found)}")
    return int(edge)
