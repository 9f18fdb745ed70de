"""Pictures that rows of prompts name: files beside the data, data URLs, and contents of files in Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy.typing as npt
from blake3 import blake3

from weightpager.answers.model import Integers
from weightpager.errors import CompileError, ImageError, shown
from weightpager.machine.paths import has_file
from weightpager.readers.chat_template import conversation_of
from weightpager.readers.image_reader import MOST_OF_A_PATH
from weightpager.readers.patch_processor import Grid
from weightpager.readers.picture_reader import PictureReader, content_of, is_url
from weightpager.task_data.row_files import READERS, Row, hashed

IMAGE, IMAGES = "image", "images"
"""Columns of one picture, and of a list of them."""

_SAID = (IMAGE.encode(), rb"\u006")
"""All ways to name a picture say this word, if need be with letters as JSON need not write them."""

_AT_ONCE = 2**20


@dataclass(frozen=True)
class StoredPicture:
    """A picture of a row, which is read whenever it is needed.

    Attributes:
        source: its file, or a file's content.
        key: of the `Picture` that was read of it first.
        tokens: of it.
        tiles: of it, in rows and columns; None where it has none.
    """

    source: Path | bytes = field(repr=False)
    key: bytes
    tokens: int
    tiles: Grid | None = None


def of_columns(row: Row) -> list[Any]:
    """What a row's columns say of its pictures. Raises `ValueError` if they say it twice, or in another form."""
    one, several = row.get(IMAGE), row.get(IMAGES)
    one = None if one == "" else one  # as a table of texts says that there is none
    if one is not None and several:
        raise ValueError(f"expected {IMAGE!r} or {IMAGES!r}, found both")
    if several is None or several == "":
        return [] if one is None else [one]
    if not isinstance(several, list):
        raise ValueError(f"expected {IMAGES!r} to be a list of pictures, found {shown(several)}")
    return several


def stored(values: Sequence[Any], folder: Path, reader: PictureReader, where: str) -> tuple[StoredPicture, ...]:
    """Pictures of a row, all of which have been read once: a damaged one is found before hours are spent.

    Args:
        values: what the row says of each.
        folder: of the data's file.
        reader: of the model's pictures.
        where: what errors speak of.

    Raises:
        CompileError: one can't be used.
    """
    found = []
    for number, value in enumerate(values, 1):
        try:
            source = _source(value, folder)
            found.append(StoredPicture(source, *reader.known(source)))
        except ImageError as error:
            raise CompileError(f"{where}: picture {number} of {len(values)}: {error}") from error
    return tuple(found)


def picture_inputs(
    pictures: Sequence[StoredPicture], reader: PictureReader, ids: Integers
) -> dict[str, npt.NDArray[Any]]:
    """`PictureReader.inputs` of pictures that stand in texts. Raises `CompileError` if one can't be read any more."""
    try:
        return reader.inputs([reader.read(picture.source) for picture in pictures], ids)
    except ImageError as error:
        raise CompileError(f"pictures: {error}") from error


def fingerprint(path: Path, where: str) -> str:
    """A hash of a file of prompts, and of all files that its rows name as pictures.

    Raises:
        CompileError: it isn't there, or can't be read.
    """
    own = hashed(path, where)
    named = [file for file in dict.fromkeys(_files(path)) if has_file(file)] if _may_name(path) else []
    if not named:
        return own
    digest = blake3(own.encode())
    for file in named:
        digest.update(f"\n{hashed(file, where)}".encode())
    return digest.hexdigest()


def _may_name(path: Path) -> bool:
    """Whether rows may name pictures, by a quick look."""
    if path.suffix == ".parquet":  # compressed
        return True
    before = b""
    with suppress(OSError), path.open("rb") as file:
        while chunk := file.read(_AT_ONCE):
            looked_at = before + chunk
            if any(word in looked_at for word in _SAID):
                return True
            before = looked_at[-len(IMAGE) :]
    return False


def _source(value: Any, folder: Path) -> Path | bytes:
    """The file of a picture that a row names, or its content. Raises `ImageError` where that is neither."""
    if isinstance(value, dict):  # as the datasets library has it
        content, name = value.get("bytes"), value.get("path")
        value = name if content is None else content
    if isinstance(value, str) and value:
        return content_of(value) if is_url(value) else folder / value
    if isinstance(value, bytes) and value:
        return value
    raise ImageError(
        "expected a picture: a path from the data's folder, a data URL, or in Parquet the content of a file, found "
        f"{shown(value)}"
    )


def _files(path: Path) -> Iterator[Path]:
    """The files that rows name, as far as the data can be read."""
    kind = READERS.get(path.suffix)
    rows = iter(()) if kind is None else kind[1](path)
    try:
        for row in rows:
            for value in _named(row):
                if isinstance(value, dict):
                    value = value.get("path") if value.get("bytes") is None else None
                if isinstance(value, str) and 0 < len(value) <= MOST_OF_A_PATH and not is_url(value):
                    yield path.parent / value
    except Exception:  # noqa: BLE001 - whoever reads the data says what is wrong with it
        return


def _named(row: Row) -> Iterator[Any]:
    """What a row says of its pictures, in columns and in messages' parts."""
    several = row.get(IMAGES)
    yield from chain([row.get(IMAGE)], several if isinstance(several, list) else [])
    for value in row.values():
        if isinstance(value, list) and value and isinstance(value[0], dict) and "role" in value[0]:
            with suppress(ValueError):
                yield from conversation_of(value).pictures
