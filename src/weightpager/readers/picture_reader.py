"""`PictureReader`: pictures that stand among a prompt's words in, the pixels that a picture tower takes out."""

from __future__ import annotations

import copy
import json
import math
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from weightpager.bundle.format.manifest import PackedTiles, Pictures
from weightpager.bundle.settings import IMAGES, PROCESSOR, parse
from weightpager.config import is_number
from weightpager.errors import ImageError, shortened, shown
from weightpager.machine.paths import has_file
from weightpager.readers.image_processor import ImageProcessor, begins
from weightpager.readers.image_reader import (
    ANY_SIZE,
    MOST_OF_A_PATH,
    MOST_PIXELS,
    Frame,
    ImageModel,
    check_pillow,
    framed,
    from_base64,
    opened,
)
from weightpager.readers.packed_tiles import PackedProcessor, order
from weightpager.readers.patch_processor import CHANNELS, Grid, PatchProcessor
from weightpager.readers.picture import Picture
from weightpager.readers.tile_processor import TileProcessor, tile_text, tiles_of

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

    PictureSource: TypeAlias = str | os.PathLike[str] | bytes | Frame | PilImage
else:  # who asks for a signature's types may have no Pillow
    PictureSource = str | os.PathLike[str] | bytes | Frame
"""A picture: a file's path or a data URL, a file's content, a frame in RGB, or one of Pillow's images."""

_TYPES = ("Bit", "CLIP", "Llava", "Siglip", "ViT")
"""Beginnings of the names of transformers' processors whose steps `ImageProcessor` does."""

_MODES = ("1", "CMYK", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr")
"""Modes of Pillow that are read in RGB; transparency is left out, as transformers' own reader of files does."""

_KEPT = 4
"""A decoded picture waits for its tower as long as it takes at most so many times its pixels' bytes."""

_FILTERS = 6
"""Pillow's, by which it scales."""

_AT_ONCE = 2**20
"""Pixels that are hashed at a time."""

_STEPS = (
    "do_pad", "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor",
    "do_normalize", "image_mean", "image_std",
)  # fmt: skip
"""Settings that pixels depend on."""

_PATCH_STEPS = ("patch_size", "merge_size", "temporal_patch_size", "min_pixels", "max_pixels")
"""The same of runs of patches."""

_TILE_STEPS = ("do_image_splitting", "max_image_size", "image_grid_pinpoints")
"""The same of tiles."""

_OF_PATCHES = {
    "patch_size": "patch_size",
    "merge_size": "spatial_merge_size",
    "temporal_patch_size": "temporal_patch_size",
}
"""What a processor says of patches, and the tower's configuration, too."""

MOST_URL = 2**26
"""Characters of a data URL."""

_MEDIA = ("bmp", "jpeg", "jpg", "png", "webp", "x-portable-pixmap")
_DATA_URL = re.compile(rf"data:image/({'|'.join(_MEDIA)});base64,", re.ASCII | re.IGNORECASE)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.ASCII | re.IGNORECASE)
_SHOWN = 40
"""Characters of a URL that a message shows."""


class Placed(Protocol):
    """What places in a text follow from: a `Picture`, or what is known of one."""

    @property
    def tokens(self) -> int:
        """The places that it takes."""

    @property
    def tiles(self) -> Grid | None:
        """Rows and columns of its tiles, if it has any."""


class PictureReader:
    """Reads the pictures of prompts, and gives them their places there. Safe to use from several threads.

    Attributes:
        pictures: how they stand in a text.
        settings: of the processor, as `ImageProcessor` takes them.
        shape: channels, height and width of a picture's pixels, or a tile's; None if they are runs of patches.
    """

    def __init__(
        self,
        processor: ImageProcessor | PatchProcessor | TileProcessor | PackedProcessor,
        settings: Mapping[str, Any],
        pictures: Pictures,
    ) -> None:
        """Use `of`. ``processor`` makes pixels of one size of any picture, runs of patches, or tiles."""
        self.pictures = pictures
        self.settings = settings
        self.shape: tuple[int, int, int] | None = None
        self._processor = processor
        self._runs = processor if isinstance(processor, PatchProcessor) else None
        self._tiles = processor if isinstance(processor, TileProcessor) else None
        self._words: Mapping[Grid, Sequence[int]] = {}
        self._packed = processor if isinstance(processor, PackedProcessor) else None
        if isinstance(processor, (TileProcessor, PackedProcessor)):
            self.shape = (CHANNELS, processor.side, processor.side)
        if isinstance(processor, ImageProcessor):
            assert processor.size is not None
            self.shape = (CHANNELS, *processor.size)
        more = _PATCH_STEPS if self._runs else _TILE_STEPS if self._tiles or self._packed else ()
        steps = {name: settings.get(name) for name in (*_STEPS, *more)}
        self._steps = blake3(json.dumps(steps, sort_keys=True).encode()).digest()
        self._known: dict[tuple[Path, int, int], tuple[bytes, int, Grid | None]] = {}

    @classmethod
    def of(cls, settings: Mapping[str, Any], pictures: Pictures) -> PictureReader:
        """What reads pictures as an image processor of transformers does over Pillow.

        Args:
            settings: those of ``preprocessor_config.json``, all stated, as ``to_dict()`` of a processor gives them.
            pictures: how they stand in a text.

        Raises:
            ValueError: the processor does other steps, or makes pixels of several sizes; says what was found.
        """
        # Transformers' own have tuples, and numbers with names.
        settings = json.loads(json.dumps(dict(settings), default=str))
        if pictures.runs is not None:
            _check_numbers(settings)
            return cls(_patches(settings, pictures), settings, pictures)
        if pictures.tiles is not None:
            _check_numbers({**settings, "do_pad": False})  # whole tiles are never padded
            return cls(_tiles(settings, pictures), settings, pictures)
        if pictures.packed is not None:
            _check_numbers({**settings, "do_pad": False})
            return cls(_packed(settings, pictures, pictures.packed), settings, pictures)
        if not begins(settings, _TYPES):
            names = ", ".join(f"{begin}ImageProcessor" for begin in _TYPES)
            raise ValueError(f"expected an image processor among {names}, found {_type(settings)}")
        processor = ImageProcessor.of(settings, _TYPES)
        if processor is None:
            raise ValueError(f"expected {_type(settings)} with sizes that it scales or crops to, found other steps")
        if processor.size is None:
            raise ValueError(f"expected {_type(settings)} to make pixels of one size of all pictures, found others")
        _check_numbers(settings)
        return cls(processor, settings, pictures)

    def read(self, source: PictureSource, most_pixels: int = MOST_PIXELS) -> Picture:
        """A picture, decoded; its pixels are found when somebody asks for them.

        Args:
            source: of the picture; a path may name any file of this machine, so requests give `content_of` of a URL.
            most_pixels: that it may have; more are refused before any is decoded.

        Raises:
            ImageError: there is no such file, or it is no whole picture, or one of several frames or too many pixels.
            ConfigError: Pillow isn't installed.
        """
        image = self._decoded(source, most_pixels)
        key = blake3(self._steps + struct.pack("<II", *image.size))
        for rows in _bands(image):
            key.update(rows)
        if self._runs is not None:
            grid = self._grid(self._runs, image)
            process = partial(self._runs.patches, self._runs.scaled(image))
            return Picture(key.digest(), process, math.prod(grid), grid)
        if self._tiles is not None:
            image = self._tiles.scaled(image)
            tiles = self._tiles.grid(image)
            tokens = tiles_of(tiles) * self.pictures.places
            return Picture(key.digest(), partial(self._tiles.tiles, image), tokens, tiles=tiles)
        if self._packed is not None:
            assert self.pictures.packed is not None
            size, process = (image.height, image.width), partial(self._packed.pixels, self._packed.parts(image))
            return Picture(key.digest(), process, len(order(size, self.pictures.packed)), size=size)
        assert isinstance(self._processor, ImageProcessor)
        process, tokens = partial(self._processor, image), self.pictures.tokens
        if self.shape is not None and image.width * image.height > _KEPT * 4 * math.prod(self.shape[1:]):
            pixels = process()
            return Picture(key.digest(), lambda: pixels, tokens)
        return Picture(key.digest(), process, tokens)

    def known(self, source: Path | bytes) -> tuple[bytes, int, Grid | None]:
        """Key, tokens and tiles of the `Picture` that `read` gives; a file of many questions is decoded once."""
        if isinstance(source, bytes) or not has_file(source):  # `read` says what is wrong
            picture = self.read(source)
            return picture.key, picture.tokens, picture.tiles
        state = source.stat()
        at = source, state.st_mtime_ns, state.st_size
        if at not in self._known:
            picture = self.read(source)
            self._known[at] = picture.key, picture.tokens, picture.tiles
        return self._known[at]

    def inputs(self, pictures: Sequence[Picture], ids: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
        """What a module of transformers takes beside texts' ids, int64 [texts, tokens], of the pictures in them."""
        pixels = [picture.pixels for picture in pictures]
        if self._tiles is not None:
            return {"pixel_values": np.concatenate(pixels)[:, None]}  # as if each were a text's only one
        if self._packed is not None:
            tiles = np.zeros((len(pixels), max(map(len, pixels)), *pixels[0].shape[1:]), np.float32)
            for row, part in zip(tiles, pixels, strict=True):
                row[: len(part)] = part
            return {"pixel_values": tiles, "image_sizes": np.array([picture.size for picture in pictures], np.int64)}
        if self._runs is None:
            return {"pixel_values": np.stack(pixels)}
        grids = [(1, *(side * self._runs.merge for side in picture.grid or ())) for picture in pictures]
        return {
            "pixel_values": np.concatenate([each.reshape(-1, each.shape[-1]) for each in pixels]),
            "image_grid_thw": np.array(grids, np.int64),
            "mm_token_type_ids": (ids == self.pictures.token_id).astype(np.int64),
        }

    def placeholders(self, number: int) -> str:
        """The text in which so many pictures stand."""
        before, behind = self.pictures.around or ("", "")
        return f"{before}{self.pictures.token}{behind}" * number

    @property
    def words(self) -> frozenset[int]:
        """The ids that stand beside the placeholder in a picture's places, however many tiles it has."""
        return frozenset(each for ids in self._words.values() for each in ids)

    def worded(self, encode: Callable[[str], Sequence[int]]) -> PictureReader:
        """The same, which knows the words between tiles; ``encode`` gives a text's ids without any around it.

        Raises:
            ValueError: tiles are placed, and the tokenizer reads the words around them as one with other words.
        """
        if self._tiles is None or self._words:
            return self
        token, border, found = self.pictures.token_id, self._border(encode), copy.copy(self)
        sides = range(1, self._tiles.a_side + 1)
        found._words = {
            (row, column): encode(tile_text((row, column), self.pictures)) for row in sides for column in sides
        }
        for grid, ids in found._words.items():
            if ids[0] != border or ids[-1] != border or ids.count(token) != tiles_of(grid):
                raise ValueError(
                    f"expected {tiles_of(grid)} of {self.pictures.token!r} in a picture's words, found {ids}"
                )
        return found

    def _border(self, encode: Callable[[str], Sequence[int]]) -> int:
        """The token that stands in front of tiles, which takes a picture's place between any words."""
        assert self.pictures.tiles is not None
        text, (token, place) = self.pictures.tiles.border, (self.pictures.token, self.pictures.token_id)
        border = encode(text)
        for before, behind in (("a", "a"), (" a ", " a "), ("\n", "\n")):
            around = (
                [border[0] if each == place else each for each in encode(f"{before}{token}{behind}")] if border else []
            )
            if len(border) != 1 or around != list(encode(f"{before}{text}{behind}")):
                raise ValueError(f"expected a tokenizer that reads {text!r} as a special token, found {list(border)}")
        return border[0]

    def placed(self, ids: Sequence[int], pictures: Sequence[Placed]) -> tuple[int, ...]:
        """Ids that are `expanded`, once it is known how many places each of their pictures takes."""
        if not self.pictures.vary:
            return tuple(ids)
        left, token = iter(pictures), self.pictures.token_id
        return tuple(place for each in ids for place in (self._places(next(left)) if each == token else (each,)))

    def _places(self, picture: Placed) -> Iterator[int]:
        """The ids that take the place of a picture's placeholder."""
        token, tiles = self.pictures.token_id, picture.tiles
        if tiles is None:
            yield from [token] * picture.tokens
            return
        for each in self._words[tiles]:
            yield from [each] * (self.pictures.places if each == token else 1)

    def expanded(self, ids: Sequence[int], number: int) -> tuple[int, ...]:
        """A text's ids in which a placeholder stands for each of its pictures, with all places that pictures take.

        Those that vary in places take one until they are `placed`.

        Raises:
            ImageError: the text has more or fewer placeholders than there are pictures.
        """
        found = ids.count(self.pictures.token_id)
        if found != number:
            raise ImageError(self._other_number(found, number))
        if not number or self.pictures.vary:
            return tuple(ids)
        places = [self.pictures.token_id] * self.pictures.tokens
        return tuple(place for each in ids for place in (places if each == self.pictures.token_id else [each]))

    def _other_number(self, found: int, number: int) -> str:
        token = self.pictures.token
        expected = f"expected as many {token} in the text as pictures, {number}"
        if not number:
            return f"{expected}, found {found}; give a picture for each, or leave {token} out"
        if not found:  # texts without any have them in front
            return f"{expected}, found none: the chat template leaves out what stands for a picture in these messages"
        return f"{expected}, or none, found {found}"

    def check_number(self, number: int, room: float) -> None:
        """Refuse more pictures than a text of ``room`` tokens holds beside one word. Raises `ImageError` of more."""
        tokens = 1 if self.pictures.vary else self.pictures.tokens
        most = max(0, int(room) - 1) // tokens
        if number > most:
            each = f"{tokens} tokens each"
            raise ImageError(f"expected at most {most} pictures of {each}, as there is room for, found {number}")

    def _decoded(self, source: PictureSource, most_pixels: int) -> PilImage:
        """A picture in RGB, turned as its camera says."""
        check_pillow()
        from PIL import ImageOps

        if isinstance(source, np.ndarray):
            image = framed(source, most_pixels)
            self._check_square(image, most_pixels)
            return image
        with opened(_given(source), most_pixels) as image:
            frames = getattr(image, "n_frames", 1) if getattr(image, "is_animated", False) else 1
            if frames > 1 and image.format != "MPO":  # a photograph, with more of it behind
                raise ImageError(f"expected a picture of one frame, found an animated one of {frames}")
            if image.mode not in _MODES:
                raise ImageError(f"expected a picture of a mode among {', '.join(_MODES)}, found {image.mode}")
            self._check_square(image, most_pixels)
            return ImageOps.exif_transpose(image).convert("RGB")

    def _grid(self, runs: PatchProcessor, image: PilImage) -> Grid:
        """The rows and columns of a run of patches."""
        grid, most = runs.grid(image.height, image.width), self.pictures.tokens
        if math.prod(grid) > most:
            found = f"{image.width} × {image.height} of {math.prod(grid)}"
            raise ImageError(f"expected a picture of at most {most} tokens, found {found}")
        return grid

    def _check_square(self, image: PilImage, most_pixels: int) -> None:
        side, processor = max(image.size), self._processor
        if isinstance(processor, ImageProcessor) and processor.pads and side * side > most_pixels:
            raise ImageError(
                f"expected at most {most_pixels} pixels of the square around a picture, found {side} × {side}"
            )


def content_of(url: str) -> bytes:
    """The content of the file that a data URL holds, which isn't opened yet.

    Raises:
        ImageError: it is an address, or holds no picture of a known type, or too much, or takes too long to be read.
    """
    start = _DATA_URL.match(url)
    if start is None:
        found = shown(shortened(url[:MOST_OF_A_PATH], _SHOWN))
        fetched = ", and nothing is fetched from an address" if _ADDRESS.match(url) else ""
        kinds = ", ".join(_MEDIA)
        raise ImageError(
            f"expected a picture as a data URL, data:image/png;base64,… (or of {kinds}){fetched}, found {found}"
        )
    if len(url) > MOST_URL:
        raise ImageError(f"expected a data URL of at most {MOST_URL} characters, found {len(url)}")
    return from_base64(url[start.end() :], "base64 in the data URL")


def is_url(text: str) -> bool:
    """Whether a text is a data URL or an address, and no path."""
    return text[:5].lower() == "data:" or _ADDRESS.match(text) is not None


def processor_settings(folder: Path) -> tuple[str, Mapping[str, Any]] | None:
    """The image processor's settings in a model's checked folder, and the name of the file that transformers wrote.

    None if there are none.
    """
    for name in (PROCESSOR, IMAGES):  # transformers looks here first
        if not has_file(folder / name):
            continue
        values = parse(name, (folder / name).read_bytes())
        found = values.get("image_processor") if name == PROCESSOR else values
        if isinstance(found, dict):
            return name, found
    return None


def check_tower(reader: PictureReader, config: Mapping[str, Any]) -> None:
    """Refuse a reader whose pixels a picture tower doesn't take, as far as the model's configuration says that.

    Raises:
        ValueError: says what was expected and what was found.
    """
    vision = config.get("vision_config", {})
    if reader.shape is None:
        check_patches(reader, vision)
        return
    if _OF_PATCHES["merge_size"] in vision:
        raise ValueError(f"expected runs of patches, as the picture tower takes, found pixels {reader.shape}")
    tower, (_, height, width) = ImageModel.of(vision), reader.shape
    if tower.type not in ANY_SIZE:
        if tower.shape not in (None, reader.shape):
            raise ValueError(f"expected pixels {tower.shape}, as the picture tower takes, found {reader.shape}")
        return
    of_class = config.get("vision_feature_select_strategy", "default") != "default"
    patch = vision.get("patch_size")
    if isinstance(patch, int) and patch > 0:
        wanted = reader.pictures.places - (reader.pictures.packed is not None)
        found = (height // patch) * (width // patch) + of_class
        if found != wanted:
            raise ValueError(f"expected pixels of {wanted} tokens a picture, found {reader.shape}, of {found}")


def check_patches(reader: PictureReader, vision: Mapping[str, Any]) -> None:
    """Refuse a reader whose runs of patches are others than a tower of such settings takes. Raises `ValueError`."""
    for ours, theirs in _OF_PATCHES.items():
        wanted, found = vision.get(theirs), reader.settings[ours]
        if wanted != found:
            raise ValueError(f"expected {ours} {shown(wanted)}, as the picture tower takes, found {found}")


def _patches(settings: Mapping[str, Any], pictures: Pictures) -> PatchProcessor:
    processor, runs = PatchProcessor(settings), pictures.runs
    if runs is None or processor.merge != runs.merge:
        raise ValueError(f"expected a merge_size of {runs and runs.merge}, found {processor.merge}")
    return processor


def _tiles(settings: Mapping[str, Any], pictures: Pictures) -> TileProcessor:
    processor = TileProcessor(settings)
    if (found := processor.most * pictures.places) > pictures.tokens:
        raise ValueError(_fewer(pictures, found))
    return processor


def _fewer(pictures: Pictures, found: int) -> str:
    return f"expected pictures of at most {pictures.tokens} tokens, found {found} of the largest"


def _packed(settings: Mapping[str, Any], pictures: Pictures, tiles: PackedTiles) -> PackedProcessor:
    processor = PackedProcessor(settings)
    if tiles.tokens > pictures.tokens:
        raise ValueError(_fewer(pictures, tiles.tokens))
    for name, wanted, found in (("side", tiles.side, processor.side), ("sizes", tiles.sizes, processor.sizes)):
        if wanted != found:
            raise ValueError(f"expected tiles of the {name} {shown(wanted)}, as the model takes, found {shown(found)}")
    return processor


def _bands(image: PilImage) -> Iterator[bytes]:
    """An image's pixels, some rows at a time: a large image isn't there twice."""
    rows = max(1, _AT_ONCE // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(image.height, top + rows))).tobytes()


def _given(source: Any) -> Path | bytes | PilImage:
    if isinstance(source, str) and is_url(source):
        return content_of(source)
    if isinstance(source, (str, os.PathLike)):
        return Path(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    from PIL import Image

    if isinstance(source, Image.Image):
        return source
    raise ImageError(
        "expected a picture: a file's path, a data URL, a file's content as bytes, an array of uint8 "
        f"[height, width, 3] or an image of Pillow, found {shown(source)}"
    )


def _type(settings: Mapping[str, Any]) -> str:
    return shortened(str(settings.get("image_processor_type")))


def _check_numbers(settings: Mapping[str, Any]) -> None:
    """Refuse a processor that would fail on a picture, or give no finite pixels."""
    if settings.get("do_resize") and (filtered := settings.get("resample")) not in (None, *range(_FILTERS)):
        raise ValueError(f"expected a resample of 0 to {_FILTERS - 1}, found {shown(filtered)}")
    if settings.get("do_rescale"):
        _check_each(settings, "rescale_factor", 1, above=0)
    if settings.get("do_normalize"):
        _check_each(settings, "image_mean", 1, CHANNELS)
        _check_each(settings, "image_std", 1, CHANNELS, above=0)
    if settings.get("do_pad") and (mean := settings.get("image_mean")):
        _check_each(settings, "image_mean", CHANNELS)
        if min(mean) < 0 or max(mean) > 1:
            raise ValueError(f"expected an image_mean of 0 to 1 to pad with, found {shown(mean)}")


def _check_each(settings: Mapping[str, Any], name: str, *counts: int, above: float = -np.inf) -> None:
    found = settings.get(name)
    values: list[Any] = list(found) if isinstance(found, (list, tuple)) else [found]
    if len(values) not in counts or not all(is_number(value) and above < value < np.inf for value in values):
        wanted = " or ".join(map(str, counts))
        more = f" above {above:g}" if above > -np.inf else ""
        raise ValueError(f"expected {name} of {wanted} numbers{more}, found {shown(found)}")
