"""``manifest.json``: what is in a bundle. Every bound is checked before anything is used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from weightpager.blocks import MAX_TASKS, BlockGrid, BlockShape
from weightpager.bundle.files.entry import FileEntry, Hash
from weightpager.bundle.files.strict import Strict
from weightpager.bundle.format.names import MANIFEST
from weightpager.bundle.format.page_file import ALIGNMENT, file_name, row_file_name
from weightpager.bundle.format.row_table import RowTableEntry
from weightpager.bundle.format.tied_table import TiedTableEntry
from weightpager.errors import BundleFormatError, ConfigError
from weightpager.page_dtype import PageDtype, block_bytes
from weightpager.transitions import Transitions

VERSION = 2
"""What is written. Version 1 is read too."""

_ROWS, _ROWS_PER_PLACE = 2**20, 64
_BLOCKS, _BLOCKS_PER_PLACE = 2**24, 4096
"""Rows of blocks, and blocks, that weights may have without any place, and for each place of a page. Readers take four
bytes for a row and three bits for a block, so that few places must not ask for many of them."""

_DTYPES_OF_VERSION_1 = ("bfloat16", "float32", "int8")

TaskKind = Literal["text-classification", "token-classification", "language-modeling", "image-classification"]


@dataclass(frozen=True)
class Form:
    """What tasks of a kind read, and what is known of it.

    Attributes:
        model: the class of transformers that runs them.
        images: whether they read images; else they read texts.
        labels: one for each text or image, one for each of its words, or none: the text itself is what is learnt.
    """

    model: str
    images: bool = False
    labels: Literal["one", "each word", "none"] = "one"


FORMS: dict[TaskKind, Form] = {
    "text-classification": Form("AutoModelForSequenceClassification"),
    "token-classification": Form("AutoModelForTokenClassification", labels="each word"),
    "language-modeling": Form("AutoModelForCausalLM", labels="none"),
    "image-classification": Form("AutoModelForImageClassification", images=True),
}

TaskName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Features = Annotated[int, Field(ge=1, le=2**24)]


class WeightEntry(Strict):
    """One paged weight; ``layer`` is the model layer that it belongs to, in execution order."""

    name: Annotated[str, Field(min_length=1, max_length=512)]
    layer: Annotated[int, Field(ge=0, lt=2**16)]
    out_features: Features
    in_features: Features


class Score(Strict):
    """A metric's value on held-out data."""

    metric: str
    value: float
    items: Count


class EvalData(Strict):
    """The held-out data that a task was measured on, so that a device can measure it again.

    ``text`` is the column of what the task reads, images included; ``blake3`` of images is over all of them.
    """

    file: str
    blake3: Hash
    text: str
    label: str
    items: Count | None


class TaskEntry(Strict):
    """One task; its files lie in ``tasks/<name>/``.

    ``sparsity`` is the fraction of the paged weights' blocks that the task drops; ``max_length`` is in tokens, and
    None for images.
    """

    name: TaskName
    kind: TaskKind
    classes: list[str]
    max_length: Annotated[int, Field(ge=1, le=2**20)] | None
    sparsity: Annotated[float, Field(ge=0, lt=1)]
    dense: Score | None
    eval: EvalData | None

    @model_validator(mode="after")
    def _classes(self) -> TaskEntry:
        if FORMS[self.kind].labels != "none" and not self.classes:
            raise ValueError(f"classes of a {self.kind} task, got none")
        if (self.max_length is None) != self.takes_images:
            raise ValueError(f"a max_length of texts and none of images, got {self.max_length} for {self.kind}")
        return self

    @property
    def takes_images(self) -> bool:
        """Whether it reads images; else it reads texts."""
        return FORMS[self.kind].images


class Manifest(Strict):
    """The whole bundle."""

    format: Literal["weightpager-bundle"]
    version: int
    generator: str
    block: str
    layout: Literal["interleaved"]
    dtype: PageDtype
    page_bytes: Annotated[int, Field(ge=ALIGNMENT, le=2**28)]
    page_files: Annotated[list[Count], Field(max_length=10_000)]
    layers: Annotated[int, Field(ge=1, le=2**16)]
    weights: Annotated[list[WeightEntry], Field(min_length=1, max_length=2**20)]
    tasks: Annotated[list[TaskEntry], Field(min_length=1, max_length=MAX_TASKS)]
    transitions: list[list[Annotated[float, Field(ge=0, le=1)]]]
    alignment: float | None
    resident_reasons: dict[str, str]
    row_files: Annotated[list[Count], Field(max_length=10_000)] = Field(default_factory=list)
    row_tables: Annotated[list[RowTableEntry], Field(max_length=2**16)] = Field(default_factory=list)
    tied_tables: Annotated[list[TiedTableEntry], Field(max_length=2**16)] = Field(default_factory=list)
    files: dict[str, FileEntry]

    @field_validator("version")
    @classmethod
    def _known(cls, version: int) -> int:
        if not 1 <= version <= VERSION:
            raise ValueError(f"a version from 1 to {VERSION}; a newer weightpager may read this bundle")
        return version

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in files:
            parts = PurePosixPath(name).parts
            if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
                raise ValueError(f"a path inside the bundle, got {name!r}")
        return files

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        try:
            block = BlockShape.parse(self.block)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        if self.version == 1 and self.dtype not in _DTYPES_OF_VERSION_1:
            raise ValueError(f"version 2 for pages of {self.dtype}, got 1")
        if self.page_bytes % ALIGNMENT or self.page_bytes < block_bytes(block, self.dtype):
            raise ValueError(f"page_bytes a multiple of {ALIGNMENT} that holds a block, got {self.page_bytes}")
        if self.pages * self.blocks_per_page >= 2**31:
            raise ValueError(f"fewer than 2^31 block locations, got {self.pages * self.blocks_per_page}")
        self._check_rows()
        self._check_counts()
        tables = ("row table", self.row_tables), ("tied table", self.tied_tables)
        for what, named in (("task", self.tasks), ("weight", self.weights), *tables):
            names = [each.name for each in named]
            if len(set(names)) != len(names):
                raise ValueError(f"{what} names that differ")
        if len({task.takes_images for task in self.tasks}) != 1:
            raise ValueError("tasks that all read texts or all read images")
        if any(weight.layer >= self.layers for weight in self.weights):
            raise ValueError(f"every weight in one of {self.layers} layers")
        if len(self.transitions) != len(self.tasks) or any(len(row) != len(self.tasks) for row in self.transitions):
            raise ValueError(f"a transition matrix of {len(self.tasks)} tasks")
        try:
            Transitions(tuple(task.name for task in self.tasks), np.array(self.transitions))
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self

    def _check_rows(self) -> None:
        wanted = sum(table.pages(self.page_bytes) for table in self.row_tables)
        if sum(self.row_files) != wanted:
            raise ValueError(f"row_files of {wanted} pages, as row_tables need, got {sum(self.row_files)}")
        if self.pages + wanted >= 2**31:
            raise ValueError(f"fewer than 2^31 pages, got {self.pages + wanted}")
        if (self.row_tables or self.tied_tables) and self.version < 2:
            raise ValueError(f"version 2 with row_tables or tied_tables, got {self.version}")

    def _check_counts(self) -> None:
        """Refuse weights whose block tables take more memory than the pages justify, or whose blocks have no number."""
        grids, blocks = [self.grid(weight) for weight in self.weights], Counter[int]()
        for weight, grid in zip(self.weights, grids, strict=True):
            blocks[weight.layer] += grid.count
        if max(blocks.values()) >= 2**32:
            raise ValueError(f"weights of fewer than 2^32 blocks in a layer, got {max(blocks.values())}")
        places = self.pages * self.blocks_per_page
        rows, most = sum(grid.rows + 1 for grid in grids), _ROWS + _ROWS_PER_PLACE * places
        if rows > most:
            raise ValueError(f"weights of at most {most} rows of blocks for so many pages, got {rows}")
        count, most = blocks.total(), _BLOCKS + _BLOCKS_PER_PLACE * places
        if count > most:
            raise ValueError(f"weights of at most {most} blocks for so many pages, got {count}")

    @property
    def block_shape(self) -> BlockShape:
        """The parsed ``block``."""
        return BlockShape.parse(self.block)

    @property
    def blocks_per_page(self) -> int:
        """Places in a page."""
        return self.page_bytes // block_bytes(self.block_shape, self.dtype)

    @property
    def pages(self) -> int:
        """Pages of blocks, in all their page files."""
        return sum(self.page_files)

    @property
    def row_pages(self) -> int:
        """Pages of rows; they are numbered behind those of blocks."""
        return sum(self.row_files)

    def grid(self, weight: WeightEntry) -> BlockGrid:
        """The blocks of a paged weight."""
        return BlockGrid(weight.out_features, weight.in_features, self.block_shape)

    def entry(self, name: str) -> FileEntry:
        """The entry of a file.

        Raises:
            BundleFormatError: there is none.
        """
        if name not in self.files:
            raise BundleFormatError(MANIFEST, "files", f"an entry for {name}", "none")
        return self.files[name]

    def page_file_names(self) -> list[str]:
        """Names of all page files, in order: those of blocks, then those of rows."""
        return [*(file_name(number) for number in range(len(self.page_files))), *self.row_file_names()]

    def row_file_names(self) -> list[str]:
        """Names of the page files of rows, in order."""
        return [row_file_name(number) for number in range(len(self.row_files))]

    def block_page_ranges(self) -> Iterator[tuple[str, int, int]]:
        """Name of each page file of blocks, its first page and how many pages it has."""
        return islice(self.page_ranges(), len(self.page_files))

    def page_ranges(self) -> Iterator[tuple[str, int, int]]:
        """Name of each page file, its first page and how many pages it has, as `page_file_names` has them."""
        first = 0
        for name, count in zip(self.page_file_names(), self.page_files + self.row_files, strict=True):
            yield name, first, count
            first += count

    @classmethod
    def parse(cls, text: bytes) -> Manifest:
        """Validate a manifest's JSON.

        Raises:
            BundleFormatError: names the first field that is wrong.
        """
        return cls.read(MANIFEST, text)

    def dump(self) -> bytes:
        """The JSON that `parse` reads."""
        return self.model_dump_json(indent=1).encode() + b"\n"
