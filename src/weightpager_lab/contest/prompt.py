"""What every method is asked for its first output: the same for all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3
from safetensors import safe_open
from safetensors.numpy import save_file

from weightpager.answers.model import Floats, Inputs, Integers
from weightpager.backends.native.model_limits import ModelConfig
from weightpager.bundle import Bundle
from weightpager.bundle.format.manifest import Pictures
from weightpager.bundle.held_out_places import held_out_file
from weightpager.bundle.model_files import model_dir
from weightpager.bundle.report.compile_report import CompileReport, TaskScore
from weightpager.engine import Engine
from weightpager.errors import ConfigError, WeightpagerError
from weightpager.evaluation import measure
from weightpager.progress import Progress
from weightpager.readers.image_reader import read_image_model
from weightpager.readers.picture import Picture
from weightpager.readers.picture_reader import PictureReader, processor_settings
from weightpager.readers.tokenizer import open_tokenizer
from weightpager.task_data.batches import Labelled
from weightpager.task_data.held_out import read_held_out
from weightpager_lab.contest.result import Source
from weightpager_lab.contest.rivals.rival import DTYPE

TOKENS = 32

TEXTS = "texts.safetensors"
"""A file with pieces of each task's held-out texts, int64 [pieces, TOKENS] by task; tasks without any aren't in it.

Where pictures stand among words, a piece is a held-out prompt, filled up with `_NOTHING`, and `_PLACES` of a task has
the places of its pictures in `_PIXELS`, int64 [pieces, pictures], filled up likewise.
"""

_NOTHING = -1
_PLACES = "{}/pictures"
_PIXELS = "/pixels"


class Prompts:
    """Prompts by number: every method gets the same ones, and no two switches of it the same.

    Pieces of held-out texts come round again, in another order, where a task has fewer of them than there are numbers.

    Attributes:
        source: of the first task's.

    Args:
        bundle: of the tasks.
        seed: of the contest.
        texts: a file as `TEXTS`; if it isn't there, prompts are random.
    """

    def __init__(self, bundle: Bundle, seed: int, texts: Path) -> None:
        self._bundle = bundle
        self._seed = seed
        self._file = texts
        self._pieces: dict[str, Integers] = {}
        if texts.is_file():
            with safe_open(texts, framework="np") as tensors:  # pixels stay there: they would count as the method's
                self._pieces = {name: tensors.get_tensor(name) for name in tensors.keys() if name != _PIXELS}  # noqa: SIM118
        self.source: Source = "held-out" if next(iter(bundle.tasks)) in self._pieces else "random"

    def of(self, task: str, *number: int) -> Inputs:
        """A task's prompt of this number, which may have several parts; the last one counts."""
        pieces = self._pieces.get(task)
        if pieces is None:
            return prompt(self._bundle, task, (self._seed, *number))
        *purpose, count = number
        turn, at = divmod(count, len(pieces))
        # a seed's trailing zeros don't count: with its length in front, no purpose has another's order
        order = np.random.default_rng((self._seed, len(purpose), *purpose, turn)).permutation(len(pieces))
        piece = order[at]
        words = _text(_stated(pieces[piece])[None])
        if self._bundle.pictures is None:
            return words
        return {**words, "pixel_values": self._pixels(_stated(self._pieces[_PLACES.format(task)][piece]))}

    def items(self, task: str) -> int:
        """What a prompt is counted as: its tokens, or one for an image; the mean where prompts differ in length."""
        if self._bundle.task(task).takes_images:
            return 1
        if (pieces := self._pieces.get(task)) is not None:
            return round(float((pieces != _NOTHING).sum(1).mean()))
        if self._bundle.pictures is None:
            return TOKENS
        return TOKENS + _picture(self._bundle, np.random.default_rng(0)).tokens

    def _pixels(self, places: Integers) -> Floats:
        with safe_open(self._file, framework="np") as tensors:
            stored = tensors.get_slice(_PIXELS)
            return np.concatenate([stored[int(place) : int(place) + 1] for place in places])


def _stated(values: Integers) -> Integers:
    found: Integers = values[values != _NOTHING]
    return found


def prompt(bundle: Bundle, task: str, seed: int | Sequence[int]) -> Inputs:
    """One text of random words, behind a picture of random pixels if the model reads them there, or such an image.

    Raises:
        ConfigError: the model doesn't say how many words it knows, or how large its images are.
    """
    drawn = np.random.default_rng(seed)
    if bundle.task(task).takes_images:
        return {"pixel_values": drawn.standard_normal((1, *_shape(bundle)), np.float32)}
    words = ModelConfig.read(bundle).number("vocab_size")
    if words is None:
        raise ConfigError("expected a model whose configuration has vocab_size, found none")
    ids = drawn.integers(0, words, (1, TOKENS), np.int64)
    if (pictures := bundle.pictures) is None:
        return _text(ids)
    ids[ids == pictures.token_id] = 0 if pictures.token_id else 1
    picture = _picture(bundle, drawn)
    ids = np.concatenate([np.full((1, picture.tokens), pictures.token_id, np.int64), ids], 1)
    return {**_text(ids), **_reader(bundle, pictures).inputs([picture], ids)}


def _text(ids: npt.NDArray[Any]) -> Inputs:
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def _picture(bundle: Bundle, drawn: np.random.Generator) -> Picture:
    """Random pixels; of a model that takes any size, those of a frame."""
    assert bundle.pictures is not None
    reader = _reader(bundle, bundle.pictures)
    if bundle.pictures.vary:
        return reader.read(drawn.integers(0, 256, (_SIDE, _SIDE, 3), np.uint8))
    assert reader.shape is not None
    pixels = drawn.standard_normal((1, *reader.shape), np.float32)[0]
    return Picture(b"", lambda: pixels, bundle.pictures.tokens)


def _reader(bundle: Bundle, pictures: Pictures) -> PictureReader:
    settings = processor_settings(model_dir(bundle))
    if settings is None:
        raise ConfigError("expected a model with the settings of an image processor, found none")
    return PictureReader.of(settings[1], pictures)


def _shape(bundle: Bundle) -> tuple[int, int, int]:
    shape = read_image_model(bundle).shape
    if shape is None:
        raise ConfigError("expected a model whose configuration has num_channels and image_size, found none")
    return shape


_SIDE = 224
"""Pixels of a frame's side where a model takes any size."""

_MOST = 500
"""Pieces of a task."""

_MOST_WITH_PICTURES = 64
"""Prompts of a task that have pictures: as many as two kinds of switches and forwards ask for."""


def write_texts(bundle: Bundle, tasks: Sequence[str], folder: Path) -> None:
    """Write the file `TEXTS`, with those tasks whose held-out texts are on this machine and can be read."""
    if bundle.takes_images or (bundle.pictures is not None and bundle.pictures.vary):
        return  # pictures of one size are stored beside each other
    named = {task: stated for task in tasks if (stated := bundle.task(task).eval) is not None}
    found = {task: file for task, stated in named.items() if (file := held_out_file(bundle, stated)) is not None}
    save_file(_pieces(bundle, found) if found else {}, folder / TEXTS)


def _pieces(bundle: Bundle, files: Mapping[str, Path]) -> dict[str, npt.NDArray[Any]]:
    """Pieces by task; of none whose texts can't be read, as its prompts are random then."""
    found: dict[str, npt.NDArray[Any]] = {}
    pixels: dict[bytes, Floats] = {}
    with suppress(WeightpagerError):
        reader, vocab_size = open_tokenizer(bundle), ModelConfig.read(bundle).number("vocab_size") or 0
        for task, file in files.items():
            with suppress(WeightpagerError):
                texts = read_held_out(bundle.task(task), file, reader, vocab_size, 1)
                if bundle.pictures is not None:
                    found |= _with_pictures(task, texts, pixels)
                elif len(pieces := _cut(texts)):
                    found[task] = pieces
    return {**found, _PIXELS: np.concatenate(list(pixels.values()))} if pixels else found


def _cut(texts: Iterable[Labelled]) -> npt.NDArray[Any]:
    """A task's texts one behind the other, cut to the length of a prompt."""
    stream = np.concatenate([inputs["input_ids"][0] for inputs, _ in texts])
    return stream[: len(stream) // TOKENS * TOKENS].reshape(-1, TOKENS)[:_MOST]


def _with_pictures(task: str, prompts: Iterable[Labelled], pixels: dict[bytes, Floats]) -> dict[str, Integers]:
    """A task's first prompts that have pictures, whole, and where their ``pixels`` are, to which new ones are added."""
    asked = (inputs for inputs, _ in prompts if "pixel_values" in inputs)
    rows: list[Integers] = []
    places: list[list[int]] = []
    for inputs in islice(asked, _MOST_WITH_PICTURES):
        rows.append(inputs["input_ids"][0])
        keys = []
        for picture in inputs["pixel_values"]:
            keys.append(blake3(picture.tobytes()).digest())
            pixels.setdefault(keys[-1], picture[None])
        known = list(pixels)
        places.append([known.index(key) for key in keys])
    return {task: _filled(rows), _PLACES.format(task): _filled(places)} if rows else {}


def _filled(rows: Sequence[Integers | list[int]]) -> Integers:
    table = np.full((len(rows), max(map(len, rows))), _NOTHING, np.int64)
    for row, values in zip(table, rows, strict=True):
        row[: len(values)] = values
    return table


def scores(
    bundle: Bundle, report: CompileReport | None, *, again: bool, progress: Progress
) -> tuple[list[TaskScore], str]:
    """Every task's score and where it comes from; nothing where the bundle has no held-out data and no report.

    Args:
        bundle: of the tasks.
        report: of its compile, if it has one.
        again: whether to measure, where the held-out data is on this machine.
        progress: of that.
    """
    stated = [entry.eval for entry in bundle.tasks.values()]
    if again and all(data is not None and held_out_file(bundle, data) is not None for data in stated):
        with Engine.from_pretrained(bundle.path, dtype=DTYPE) as engine:
            return measure(engine, bundle.tasks, progress), "this run"
    return (report.tasks, "the compile") if report is not None else ([], "")
