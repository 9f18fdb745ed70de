"""`ImageProcessor`: an image as a model expects it, over Pillow and numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

Pixels = npt.NDArray[np.float32]

MOST_SIDE = 2**11
"""Pixels that an image may be scaled to."""

MOST_RATIO = 32
"""Of an image's sides: a processor may scale the shorter one, and a strip would become a wall."""

_SIZES = ("size", "crop_size", "pad_size", "max_image_size", "image_grid_pinpoints", "size_divisor")

_TYPES = ("Beit", "Bit", "DeiT", "Segformer", "ViT")
"""Beginnings of the names of transformers' processors that do the same steps in the same order."""

_BILINEAR = 2
"""Pillow's number."""

_ENDINGS = ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil")

PATCHES = ("Qwen2VL",)
"""Beginnings of the names of those that make runs of patches, and state how many pixels a picture has as a size."""

TILES = ("Idefics3", "SmolVLM")
"""Beginnings of the names of those that cut pictures into tiles."""

PACKED = ("LlavaNext",)
"""The same of those whose tiles' features are put together."""

_PADDING = "Llava"
"""Beginning of the names of those that pad with the mean colour to a square first, if their settings say so."""


class ImageProcessor:
    """Scales, crops and normalises images bit for bit as transformers does with Pillow.

    Other processors of transformers pad, cut into tiles, or do steps of their own: `of` knows none of these.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """``settings`` are those of ``preprocessor_config.json``, all stated, as transformers saves them."""
        self._settings = settings

    @classmethod
    def of(cls, settings: Mapping[str, Any], types: Sequence[str] = _TYPES) -> ImageProcessor | None:
        """The processor with some settings; None if it does other steps than these, or is of another type.

        Raises:
            ValueError: it scales to absurd sizes.
        """
        check_sides(settings)
        stated = settings.get("do_center_crop") is not None or settings.get("crop_size") is None
        plain = begins(settings, types) and (not settings.get("do_pad") or begins(settings, (_PADDING,)))
        sized = not settings.get("do_resize") or _kind_of(settings.get("size")) is not None
        cropped = not settings.get("do_center_crop") or _kind_of(settings.get("crop_size")) == "fixed"
        return cls(settings) if stated and plain and sized and cropped else None

    @property
    def pads(self) -> bool:
        """Whether it makes a square of an image first, whose side is the longer one of the image."""
        return bool(self._settings.get("do_pad"))

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the pixels; None if they depend on the image's."""
        for does, key in (("do_center_crop", "crop_size"), ("do_resize", "size")):
            if self._settings.get(does):
                size = self._settings[key]
                return (size["height"], size["width"]) if _kind_of(size) == "fixed" else None
        return None

    def __call__(self, image: PilImage) -> Pixels:
        """The pixels of an image in RGB, float32 [channels, height, width]."""
        settings = self._settings
        if self.pads:
            image = _squared(image, settings.get("image_mean"))
        if settings.get("do_resize"):
            height, width = _target(settings["size"], image.height, image.width)
            filtered = settings.get("resample")
            image = image.resize((width, height), _BILINEAR if filtered is None else filtered)
        pixels = np.moveaxis(np.array(image), -1, 0)
        if settings.get("do_center_crop"):
            pixels = _center(pixels, settings["crop_size"]["height"], settings["crop_size"]["width"])
        return np.ascontiguousarray(normalised(pixels, settings))


def normalised(pixels: npt.NDArray[Any], settings: Mapping[str, Any]) -> Pixels:
    """Pixels [channels, height, width] as a processor's settings rescale and normalise them."""
    if settings.get("do_rescale"):
        pixels = (pixels.astype(np.float64) * settings["rescale_factor"]).astype(np.float32)
    values = pixels.astype(np.float32)
    if settings.get("do_normalize"):
        mean, deviation = (_each(settings[name], len(values)) for name in ("image_mean", "image_std"))
        values = (values - mean) / deviation
    return values


def check_sides(settings: Mapping[str, Any]) -> None:
    """Refuse a processor that scales to absurd sizes. Raises `ValueError`."""
    for key in () if begins(settings, PATCHES) else _SIZES:
        for side in _numbers(settings.get(key)):
            if not 0 < side <= MOST_SIDE:
                raise ValueError(f"expected sizes of 1 to {MOST_SIDE}, found {key} {side}")


def begins(settings: Mapping[str, Any], types: Sequence[str]) -> bool:
    """Whether a processor's name is one of these types', whatever transformers computes it with."""
    return settings.get("image_processor_type") in {begin + end for begin in types for end in _ENDINGS}


def _squared(image: PilImage, mean: Sequence[float] | None) -> PilImage:
    """An image in the middle of a square of a colour."""
    from PIL import Image

    if image.width == image.height:
        return image
    side = max(image.size)
    colour = tuple(int(each * 255) for each in mean) if mean else 0
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _numbers(size: Any) -> list[int]:
    if isinstance(size, (list, tuple)):
        return [side for each in size for side in _numbers(each)]
    sides = size.values() if isinstance(size, Mapping) else [size]
    return [int(side) for side in sides if side is not None]


def _kind_of(size: Any) -> str | None:
    """How a size is stated: both sides, or the shorter one."""
    stated = {key for key, value in size.items() if value} if isinstance(size, Mapping) else set()
    return {frozenset({"height", "width"}): "fixed", frozenset({"shortest_edge"}): "shorter"}.get(frozenset(stated))


def _target(size: Mapping[str, int], height: int, width: int) -> tuple[int, int]:
    if _kind_of(size) == "fixed":
        return size["height"], size["width"]
    short = size["shortest_edge"]
    long = int(short * max(height, width) / min(height, width))
    return (long, short) if width <= height else (short, long)


def _center(pixels: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[Any]:
    """The middle of an image, with zeros around it where it is smaller."""
    inner = pixels[:, _middle(pixels.shape[1], height), _middle(pixels.shape[2], width)]
    if inner.shape[1:] == (height, width):
        return inner
    centred = np.zeros((len(pixels), height, width), pixels.dtype)
    top, left = (_border(have, want) for have, want in zip(pixels.shape[1:], (height, width), strict=True))
    centred[:, top : top + inner.shape[1], left : left + inner.shape[2]] = inner
    return centred


def _middle(have: int, want: int) -> slice:
    start = max(0, (have - want) // 2)
    return slice(start, start + min(have, want))


def _border(have: int, want: int) -> int:
    """Where an image begins in a larger one."""
    return max(0, -((have - want) // 2))


def _each(value: float | Sequence[float], channels: int) -> npt.NDArray[np.float32]:
    return np.broadcast_to(np.array(value, np.float32), channels)[:, None, None]
