"""`PatchProcessor`: a picture of any size as a run of patches, over Pillow and numpy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from weightpager.bundle.format.manifest import PatchRuns
from weightpager.config import is_whole
from weightpager.errors import shown
from weightpager.readers.image_processor import MOST_RATIO, PATCHES, Pixels, begins, normalised

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

Grid = tuple[int, int]
"""Rows and columns of a picture's places, each a square of patches that become one feature."""

CHANNELS = 3

_MOST_PLACES = 2**14
_MOST_PIXELS = 2**40  # what isn't absurd is bounded by the places
_MOST_PATCH, _MOST_MERGE, _MOST_FRAMES = 64, 16, 8
_BICUBIC = 3


class PatchProcessor:
    """Scales a picture to whole places and cuts it into patches, bit for bit as transformers' Qwen2-VL processor does.

    Attributes:
        merge: patches of a side of a place.
        unit: pixels of a side of a place.
        places: that a picture takes at most.
        patch: numbers of a patch: channels, frames of a still picture, rows and columns.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """``settings`` are those of ``preprocessor_config.json``, all stated, as transformers saves them.

        Raises:
            ValueError: they aren't those of such a processor, or absurd.
        """
        if not begins(settings, PATCHES) or not settings.get("do_resize"):
            raise ValueError("expected a Qwen2VLImageProcessor that scales pictures (do_resize), found another one")
        if settings.get("do_center_crop") or settings.get("do_pad"):
            raise ValueError("expected a Qwen2VLImageProcessor that neither crops nor pads, found one that does")
        self._settings = settings
        self._side = _whole(settings, "patch_size", _MOST_PATCH)
        self.merge = _whole(settings, "merge_size", _MOST_MERGE)
        self.patch = (CHANNELS, _whole(settings, "temporal_patch_size", _MOST_FRAMES), self._side, self._side)
        self.unit = self._side * self.merge
        self._least, self._most = _pixels(settings)
        least, most = self._least / self.unit**2, self._most / self.unit**2
        # Of the most oblong picture: sides that are rounded up, and one that can't be smaller than a place.
        rounded = least + math.sqrt(least) * (math.sqrt(MOST_RATIO) + 1 / math.sqrt(MOST_RATIO)) + 1
        self.places = int(max(1, most, rounded, math.sqrt(MOST_RATIO * most)))
        if self.places > _MOST_PLACES:
            limit = _MOST_PLACES * self.unit**2
            raise ValueError(f"expected a size (max_pixels) of at most {limit} pixels, found {shown(self._most)}")

    def grid(self, height: int, width: int) -> Grid:
        """The rows and columns of places that a picture of so many pixels becomes."""
        unit = self.unit
        rows, columns = round(height / unit), round(width / unit)
        if rows * columns * unit**2 > self._most:
            by = math.sqrt((height * width) / self._most)
            rows, columns = (max(1, math.floor(side / by / unit)) for side in (height, width))
        elif rows * columns * unit**2 < self._least:
            by = math.sqrt(self._least / (height * width))
            rows, columns = (math.ceil(side * by / unit) for side in (height, width))
        return rows, columns

    def scaled(self, image: PilImage) -> PilImage:
        """An image of whole places."""
        rows, columns = self.grid(image.height, image.width)
        filtered = self._settings.get("resample")
        return image.resize((columns * self.unit, rows * self.unit), _BICUBIC if filtered is None else filtered)

    def patches(self, image: PilImage) -> Pixels:
        """The patches of an image in RGB that is `scaled`, float32 [places, patches of a place, numbers of a patch]."""
        rows, columns = image.height // self.unit, image.width // self.unit
        pixels = normalised(np.moveaxis(np.array(image), -1, 0), self._settings)
        side, merge, frames = self._side, self.merge, self.patch[1]
        cut = pixels.reshape(CHANNELS, rows, merge, side, columns, merge, side).transpose(1, 4, 2, 5, 0, 3, 6)
        still = np.broadcast_to(cut[:, :, :, :, :, None], (*cut.shape[:5], frames, side, side))
        return still.reshape(rows * columns, merge**2, -1)


def patch_positions(grid: Grid, merge: int) -> npt.NDArray[np.int64]:
    """The row and the column of each patch in its picture, int64 [places, patches of a place, 2]."""
    rows, columns = grid
    at = np.indices((rows * merge, columns * merge), np.int64)
    squares = at.reshape(2, rows, merge, columns, merge).transpose(1, 3, 2, 4, 0)
    return np.ascontiguousarray(squares.reshape(rows * columns, merge**2, 2))


def window_order(grid: Grid, window: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Places in the order of the windows that they lie in, and the window of each, int64 [places]; row by row."""
    rows, columns = np.indices(grid, np.int64)
    whose = (rows // window * -(-grid[1] // window) + columns // window).reshape(-1)
    order = np.argsort(whose, kind="stable")
    return order, whose[order]


def tower_inputs(
    pixels: Pixels, grid: Grid, runs: PatchRuns
) -> tuple[dict[str, npt.NDArray[Any]], npt.NDArray[np.int64] | None]:
    """What a tower's graph takes of one picture, and the order in which it takes the places; None for their own."""
    at = patch_positions(grid, runs.merge)
    if not runs.window:
        return {"pixel_values": pixels, "patch_positions": at}, None
    order, windows = window_order(grid, runs.window)
    each = np.repeat(windows[:, None], runs.merge**2, 1)
    return {"pixel_values": pixels[order], "patch_positions": at[order], "patch_windows": each}, order


def _whole(settings: Mapping[str, Any], name: str, most: int) -> int:
    found: Any = settings.get(name)
    if not is_whole(found) or not 1 <= found <= most:
        raise ValueError(f"expected {name} of 1 to {most}, found {shown(found)}")
    return int(found)


def _pixels(settings: Mapping[str, Any]) -> tuple[int, int]:
    """The fewest and the most pixels that a picture is scaled to."""
    size = settings.get("size")
    size = size if isinstance(size, Mapping) else {}
    stated: list[Any] = [
        size.get(edge) if settings.get(name) is None else settings[name]
        for name, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge"))
    ]
    least, most = stated
    if not (is_whole(least) and is_whole(most) and 1 <= least <= most <= _MOST_PIXELS):
        found = f"{shown(least)} and {shown(most)}"
        raise ValueError(f"expected a size of shortest_edge and longest_edge (min_pixels, max_pixels), found {found}")
    return int(least), int(most)
