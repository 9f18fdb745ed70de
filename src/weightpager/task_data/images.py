"""Image data: a folder for each class, or rows that name image files -> pictures -> batches."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from weightpager.config import is_unicode
from weightpager.errors import CompileError, ImageError, shortened
from weightpager.machine.paths import has_directory, has_file
from weightpager.readers.image_reader import MOST_OF_A_PATH, ImageReader, check_pillow, pixel_count
from weightpager.task_data.batches import Labelled
from weightpager.task_data.row_files import hashed, label_ids, labels_of, read_rows, texts_of

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp")
"""Endings of image files in a class's folder."""

Label = str | int


@dataclass(frozen=True)
class Picture:
    """One image: its file, which is read whenever it is needed, and its class."""

    path: Path
    label: int

    length = 1
    """All images of a model are of one size."""


def listed(path: Path, where: str, image: str, label: str, most: int | None = None) -> list[tuple[Path, Label]]:
    """The image files and labels that a folder or a file of rows names, the first ``most``; not one image is opened.

    A folder has one folder for each class, as datasets' ``imagefolder`` has; its images come in an order that mixes the
    classes and depends on their names alone. Rows name files relative to the file that they are in.

    Raises:
        CompileError: the folder has another form, or as `read_rows`.
    """
    if has_directory(path):
        return _of_folder(path, where)[:most]
    rows = read_rows(path, where, image, label, most=most)
    names = texts_of(rows, image, where)
    labels = labels_of(rows, label, where, nested=False)
    return [(path.parent / name, label) for name, (label,) in zip(names, labels, strict=True)]


def read(
    path: Path,
    where: str,
    columns: tuple[str, str],
    classes: Sequence[str],
    reader: ImageReader,
    most: int | None = None,
) -> tuple[Picture, ...]:
    """Pictures whose files have all been read once, so that a damaged one is found before hours are spent.

    Args:
        path: of a folder or rows.
        where: what errors speak of.
        columns: of images and labels.
        classes: in the order of their ids.
        reader: as the model needs them.
        most: pictures to read, from the first; None reads all.
    """
    labelled = listed(path, where, *columns, most)
    ids = label_ids([[label] for _, label in labelled], classes, where)
    pictures = tuple(Picture(file, number) for (file, _), (number,) in zip(labelled, ids, strict=True))
    shapes = {tuple(_pixels(picture, reader, f"{where}: image {n}").shape) for n, picture in enumerate(pictures, 1)}
    if len(shapes) != 1:
        raise CompileError(f"{where}: expected images that the image processor makes of one size, found {shapes}")
    return pictures


def checked_labels(path: Path, where: str, image: str, label: str, most: int | None = None) -> list[list[str | int]]:
    """The labels that `listed` gives, once each file is known to begin as an image does.

    Raises:
        CompileError: as `listed`, or an image can't be used.
        ConfigError: Pillow isn't installed.
    """
    check_pillow()
    labelled = listed(path, where, image, label, most)
    for number, (file, _) in enumerate(labelled, 1):
        with _errors_of(file, f"{where}: image {number}"):
            pixel_count(file)
    return [[name] for _, name in labelled]


def collate(pictures: Sequence[Picture], reader: ImageReader) -> Labelled:
    """Read pictures into one batch. Raises `CompileError` if an image can't be read any more."""
    pixels = np.stack([_pixels(picture, reader, "images") for picture in pictures])
    return {"pixel_values": pixels}, np.array([picture.label for picture in pictures], np.int64)


def fingerprint(path: Path, where: str, image: str, label: str) -> str:
    """A hash of all images and their labels. Raises `CompileError` as `listed` does, or if an image isn't there."""
    digest = blake3()
    for file, name in listed(path, where, image, label):
        digest.update(f"{_hash(file, where)} {name!s}\n".encode())
    return digest.hexdigest()


def _hash(file: Path, where: str) -> str:
    if not has_file(file):
        raise CompileError(f"{where}: expected an image, found no file at {shortened(str(file), MOST_OF_A_PATH)}")
    return hashed(file, where)


def _pixels(picture: Picture, reader: ImageReader, where: str) -> Any:
    with _errors_of(picture.path, where):
        return reader.read(picture.path)


@contextmanager
def _errors_of(file: Path, where: str) -> Iterator[None]:
    try:
        yield
    except ImageError as error:
        path = shortened(str(file), MOST_OF_A_PATH)
        name = "" if path in str(error) else f" ({path})"
        raise CompileError(f"{where}{name}: {error}") from error


def _of_folder(path: Path, where: str) -> list[tuple[Path, Label]]:
    folders = sorted(entry for entry in _seen_in(path, where) if has_directory(entry))
    if not folders:
        raise CompileError(f"{where}: expected a folder for each class in it, found none; or name a file of rows")
    labelled: list[tuple[Path, Label]] = []
    for folder in folders:
        if not is_unicode(folder.name):
            raise CompileError(f"{where}: expected class names in UTF-8, found the folder {folder.name!r}; rename it")
        files = _seen_in(folder, where)
        if other := sorted(file.name for file in files if file.suffix.lower() not in SUFFIXES):
            raise CompileError(f"{where}: expected files of {', '.join(SUFFIXES)} in {folder}, found {other[0]}")
        labelled += [(file, folder.name) for file in files]
    if not labelled:
        raise CompileError(f"{where}: expected at least one image, found empty folders")
    return sorted(labelled, key=lambda entry: blake3(os.fsencode(f"{entry[1]}/{entry[0].name}")).digest())


def _seen_in(folder: Path, where: str) -> list[Path]:
    try:
        return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise CompileError(f"{where}: {folder} cannot be read: {error.strerror or error}") from error
