"""``manifest.json``: what is in a bundle. Every bound is checked before anything is used."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta, field

from weightpager.blocks import MAX_TASKS, BlockGrid, BlockShape
from weightpager.bundle.files.entry import FileEntry, Hash
from weightpager.bundle.files.strict import Strict, checked, parse
from weightpager.bundle.format.names import MANIFEST, TASKS, is_inside, private_file
from weightpager.bundle.format.page_file import ALIGNMENT, page_ranges, row_file_name
from weightpager.bundle.format.row_table import RowTableEntry
from weightpager.bundle.format.whole_weight import WholeWeightEntry
from weightpager.errors import BundleFormatError, ConfigError
from weightpager.page_dtype import PageDtype, block_bytes
from weightpager.transitions import Transitions

VERSION = 3

LOW_RANK_DTYPE: PageDtype = "int8"
"""Of the blocks in low-rank pages."""

_ROWS, _ROWS_PER_PLACE = 2**20, 64
_BLOCKS, _BLOCKS_PER_PLACE = 2**24, 4096
"""Rows of blocks, and blocks, that weights may have without any place, and for each place of a page. Readers take four
bytes for a row and three bits for a block, so that few places must not ask for many of them."""

TaskKind = Literal[
    "text-classification", "token-classification", "language-modeling", "image-classification", "text-generation"
]
"""What a task reads and gives."""


@dataclass(frozen=True)
class Form:
    """What tasks of a kind read and give, as far as bundles, compilers and backends must know.

    Attributes:
        model: the class of transformers that runs them.
        picture_model: the class that does so where the model has a picture tower; empty where there is none.
        rows: what a row of their data is: a text or an image with its label, words with a label each, a text that is
            learnt itself, or a prompt with its completion, which alone is learnt and measured.
        columns: the usual names of what is read, and of what is learnt of it.
    """

    model: str
    rows: Literal["text", "image", "words", "running text", "completion"]
    columns: tuple[str, str] = ("text", "label")
    picture_model: str = ""

    @property
    def images(self) -> bool:
        """Whether they read images; else they read texts."""
        return self.rows == "image"

    @property
    def completes(self) -> bool:
        """Whether a text is a prompt and its completion."""
        return self.rows == "completion"

    @property
    def writes(self) -> bool:
        """Whether they continue texts, and so have no classes but the model's words."""
        return self.rows in ("running text", "completion")

    @property
    def by_token(self) -> bool:
        """Whether there are logits of each token; else of each text or image."""
        return self.writes or self.rows == "words"


FORMS: dict[TaskKind, Form] = {
    "text-classification": Form("AutoModelForSequenceClassification", "text"),
    "token-classification": Form("AutoModelForTokenClassification", "words", ("tokens", "tags")),
    "language-modeling": Form("AutoModelForCausalLM", "running text"),
    "image-classification": Form("AutoModelForImageClassification", "image", ("image", "label")),
    "text-generation": Form(
        "AutoModelForCausalLM", "completion", ("prompt", "completion"), picture_model="AutoModelForImageTextToText"
    ),
}

TextMetric = Literal["exact-match", "chrf", "rouge-l", "token-f1"]
"""The metric that compares a generated text with the wanted one."""

TaskName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}\Z")]
ModuleName = Annotated[str, Meta(min_length=1, max_length=512)]
Count = Annotated[int, Meta(ge=0, lt=2**31)]
Features = Annotated[int, Meta(ge=1, le=2**24)]


class WeightEntry(Strict, frozen=True, kw_only=True):
    """One paged weight of a model layer; layers are counted in execution order."""

    name: Annotated[str, Meta(min_length=1, max_length=512)]
    layer: Annotated[int, Meta(ge=0, lt=2**16)]
    out_features: Features
    in_features: Features


class DenseScore(Strict, frozen=True, kw_only=True):
    """The dense model's metric on so many held-out items, such as 0.9 of an accuracy."""

    metric: str
    value: float
    items: Count


class EvalData(Strict, frozen=True, kw_only=True):
    """The held-out data that a task was measured on, so that a device can measure it again.

    Attributes:
        file: its path from the folder that the bundle was written into, or its name if it lay elsewhere.
        blake3: its hash; of images over all of them.
        text: the column of what the task reads, images included.
        items: the number of items that are measured; None for all.
    """

    file: str
    blake3: Hash
    text: str
    label: str
    items: Count | None


MOST_SYSTEM = 2**16
"""Characters of a task's system message, at most."""


class Generation(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """How a text-generation task's answers are made, and what they are measured by.

    Attributes:
        prompts: ``plain`` where a prompt is read as it is, ``chat`` where it is a conversation in the model's chat
            template.
        max_new_tokens: the most tokens of an answer.
        metrics: the first is the task's own.
        system: the message that begins conversations which bring none; None for none.
    """

    prompts: Literal["plain", "chat"]
    max_new_tokens: Annotated[int, Meta(ge=1, le=2**20)]
    metrics: Annotated[list[TextMetric], Meta(min_length=1, max_length=8)]
    system: Annotated[str, Meta(min_length=1, max_length=MOST_SYSTEM)] | None = None

    def __post_init__(self) -> None:
        if self.system is not None and self.prompts != "chat":
            raise ValueError(f"a system message for prompts of the form chat alone, got one for {self.prompts}")


class PatchRuns(Strict, frozen=True, kw_only=True):
    """How a picture of any size becomes a run of patches, of which squares are merged into one place each.

    Attributes:
        merge: patches of a side of such a square.
        window: places of a side of the windows inside which most of the tower's layers look; 0 where none do.
    """

    merge: Annotated[int, Meta(ge=1, le=16)]
    window: Annotated[int, Meta(ge=0, le=2**10)]


class Tiles(Strict, frozen=True, kw_only=True):
    """How a picture becomes tiles of one size, row by row, and a small one of the whole behind them.

    Attributes:
        places: that a tile takes in a text.
        border: the text of the token in front of each tile, and behind the last one.
        whole: the text that says behind a border that a tile shows the whole; others say their row and column.
    """

    places: Annotated[int, Meta(ge=1, le=2**14)]
    border: Annotated[str, Meta(min_length=1, max_length=64)]
    whole: Annotated[str, Meta(min_length=1, max_length=64)]


Pixels = Annotated[int, Meta(ge=1, le=2**11)]


class PackedTiles(Strict, frozen=True, kw_only=True):
    """How a picture becomes tiles whose features are put together, row by row, behind those of one of the whole.

    Attributes:
        side: of a tile.
        patches: of a side of a tile, each with a feature; one more feature of a tile ends rows.
        sizes: heights and widths of whole tiles, of which one is taken for a picture.
    """

    side: Pixels
    patches: Annotated[int, Meta(ge=1, le=2**7)]
    sizes: Annotated[list[tuple[Pixels, Pixels]], Meta(min_length=1, max_length=64)]

    @property
    def tokens(self) -> int:
        """Places of a picture at most."""
        each = [(height // self.side * self.patches, width // self.side * self.patches) for height, width in self.sizes]
        return self.patches**2 + max(rows * (columns + 1) for rows, columns in each)

    @property
    def tiles(self) -> int:
        """Of a picture at most."""
        return 1 + max(height // self.side * (width // self.side) for height, width in self.sizes)


class Pictures(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """The picture tower of a model that reads pictures among its words, and the connector behind it.

    A picture's features stand in the places of so many tokens of a text. `Manifest.layers` counts the tower's layers
    first.

    Attributes:
        blocks: ``shared`` where all tasks have the same tower and connector, so that a picture has the same features
            for all of them; ``own`` where each task has its own.
        layers: of the tower.
        token: the text of the placeholder, such as ``<image>``.
        token_id: of the placeholder.
        tokens: how many places a picture takes; at most, where it is a run of patches, or has tiles.
        width: of a feature: that of the language model's embeddings.
        runs: how pictures become runs of patches; None where these have one size.
        tiles: how pictures become tiles between words; None where they don't.
        packed: how they become tiles whose features are put together; None where they don't.
        around: what stands before and behind a placeholder where nobody has written one; None for nothing.
    """

    blocks: Literal["shared", "own"]
    layers: Annotated[int, Meta(ge=1, le=2**9)]
    token: Annotated[str, Meta(min_length=1, max_length=64)]
    token_id: Annotated[int, Meta(ge=0, lt=2**24)]
    tokens: Annotated[int, Meta(ge=1, le=2**14)]
    width: Annotated[int, Meta(ge=1, le=2**18)]
    runs: PatchRuns | None = None
    tiles: Tiles | None = None
    packed: PackedTiles | None = None
    around: tuple[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=64)]] | None = None

    @property
    def places(self) -> int:
        """How many features those pixels have that the tower sees at once: a picture's, or a tile's."""
        if self.packed is not None:
            return self.packed.patches**2 + 1
        return self.tokens if self.tiles is None else self.tiles.places

    @property
    def vary(self) -> bool:
        """Whether it depends on a picture how many places it takes."""
        return (self.runs, self.tiles, self.packed) != (None, None, None)


MOST_RANK = 1024
"""The largest rank of a low-rank part."""


class LowRankEntry(Strict, frozen=True, kw_only=True):
    """A task's low-rank parts, which lie in low-rank pages.

    Attributes:
        rank: of all of them.
        weights: positions in `Manifest.weights` of those that have a part, ascending.
    """

    rank: Annotated[int, Meta(ge=1, le=MOST_RANK)]
    weights: Annotated[list[Count], Meta(min_length=1, max_length=2**20)]


class TaskEntry(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """One task; its files lie in ``tasks/<name>/``.

    Attributes:
        classes: names of its classes, by their numbers.
        max_length: tokens at which its texts are cut; None for images.
        sparsity: the fraction of the paged weights' blocks that it drops.
        dense: the dense model's metric; None if it wasn't measured.
        eval: the data that it was measured on; None without any.
        generation: how its answers are made; for text-generation alone.
        add_bos_token: whether it learnt from texts that begin with what the tokenizer puts in front of one, and so
            reads prompts that do, but for conversations in the chat template; of tasks that write texts.
        dropped: modules, by canonical name, whose paged weights it does without: each of these gives zeros, and its
            bias isn't added.
        low_rank: what is added to its paged weights from low-rank pages; None where nothing is.
    """

    name: TaskName
    kind: TaskKind
    classes: list[str]
    max_length: Annotated[int, Meta(ge=1, le=2**20)] | None
    sparsity: Annotated[float, Meta(ge=0, lt=1)]
    dense: DenseScore | None
    eval: EvalData | None
    generation: Generation | None = None
    add_bos_token: bool = False
    dropped: Annotated[list[ModuleName], Meta(max_length=2**12)] = field(default_factory=list)
    low_rank: LowRankEntry | None = None

    def __post_init__(self) -> None:
        if not self.writes and not self.classes:
            raise ValueError(f"classes of a {self.kind} task, got none")
        if (self.max_length is None) != self.takes_images:
            raise ValueError(f"a max_length of texts and none of images, got {self.max_length} for {self.kind}")
        if (self.generation is not None) != FORMS[self.kind].completes:
            raise ValueError(f"generation for text-generation alone, got {self.generation} for {self.kind}")
        if self.add_bos_token and not self.writes:
            raise ValueError(f"add_bos_token for tasks that write alone, got it for {self.kind}")

    @property
    def takes_images(self) -> bool:
        """Whether it reads images; else it reads texts."""
        return FORMS[self.kind].images

    @property
    def writes(self) -> bool:
        """Whether it continues texts, and so has no classes."""
        return FORMS[self.kind].writes

    @property
    def takes_conversations(self) -> bool:
        """Whether it answers conversations, as those are that it learnt from; else it reads plain texts, or images."""
        return self.generation is not None and self.generation.prompts == "chat"

    @property
    def system(self) -> str | None:
        """The message that begins conversations which bring none; None for none."""
        return None if self.generation is None else self.generation.system


class Manifest(Strict, frozen=True, kw_only=True):
    """What ``manifest.json`` says; ``docs/bundle-format.md`` explains each field.

    ``pictures`` is stated only where tasks read pictures among their words.
    """

    format: Literal["weightpager-bundle"]
    version: int
    generator: str
    block: str
    layout: Literal["interleaved"]
    dtype: PageDtype
    page_bytes: Annotated[int, Meta(ge=ALIGNMENT, le=2**28)]
    page_files: Annotated[list[Count], Meta(max_length=10_000)]
    layers: Annotated[int, Meta(ge=1, le=2**16)]
    weights: Annotated[list[WeightEntry], Meta(min_length=1, max_length=2**20)]
    tasks: Annotated[list[TaskEntry], Meta(min_length=1, max_length=MAX_TASKS)]
    transitions: list[list[Annotated[float, Meta(ge=0, le=1)]]]
    alignment: float | None
    resident_reasons: dict[str, str]
    pictures: Pictures | None = None
    row_files: Annotated[list[Count], Meta(max_length=10_000)] = field(default_factory=list)
    row_tables: Annotated[list[RowTableEntry], Meta(max_length=2**16)] = field(default_factory=list)
    whole_weights: Annotated[list[WholeWeightEntry], Meta(max_length=2**16)] = field(default_factory=list)
    files: dict[str, FileEntry]

    def _check(self) -> None:
        """Refuse parts that don't go together. Done of what is read: changes may come one by one."""
        self._check_files()
        try:
            block = BlockShape.parse(self.block)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        if self.page_bytes % ALIGNMENT or self.page_bytes < block_bytes(block, self.dtype):
            raise ValueError(f"page_bytes a multiple of {ALIGNMENT} that holds a block, got {self.page_bytes}")
        if self.pages * self.blocks_per_page >= 2**31:
            raise ValueError(f"fewer than 2^31 block locations, got {self.pages * self.blocks_per_page}")
        self._check_rows()
        self._check_counts()
        tables = ("row table", self.row_tables), ("whole weight", self.whole_weights)
        for what, named in (("task", self.tasks), ("weight", self.weights), *tables):
            names = [each.name for each in named]
            if len(set(names)) != len(names):
                raise ValueError(f"{what} names that differ")
        if len({task.takes_images for task in self.tasks}) != 1:
            raise ValueError("tasks that all read texts or all read images")
        if any(weight.layer >= self.layers for weight in self.weights):
            raise ValueError(f"every weight in one of {self.layers} layers")
        self._check_pictures()
        self._check_dropped()
        self._check_low_rank()
        if len(self.transitions) != len(self.tasks) or any(len(row) != len(self.tasks) for row in self.transitions):
            raise ValueError(f"a transition matrix of {len(self.tasks)} tasks")
        try:
            transitions_of(self)
        except ConfigError as error:
            raise ValueError(str(error)) from error

    def _check_files(self) -> None:
        own = {private_file(task.name) for task in self.tasks}
        for name in self.files:
            if not is_inside(name):
                raise BundleFormatError(MANIFEST, "files", "paths inside the bundle", repr(name)[:120])
            if name.startswith(f"{TASKS}/") and name not in own:  # older bundles have low-rank parts there
                raise BundleFormatError(MANIFEST, "files", f"private parameters alone in {TASKS}/", repr(name)[:120])

    def _check_pictures(self) -> None:
        if self.pictures is None:
            return
        if self.pictures.layers >= self.layers:
            raise ValueError(f"a picture tower of fewer than {self.layers} layers, got {self.pictures.layers}")
        if others := [task.name for task in self.tasks if not FORMS[task.kind].picture_model]:
            raise ValueError(f"tasks of text-generation alone beside pictures, got {others[0]}")

    def _check_dropped(self) -> None:
        """Refuse modules without paged weights, inside others or of a picture tower, which tasks may share."""
        if not any(task.dropped for task in self.tasks):
            return
        named = sorted((weight.name, weight.layer) for weight in self.weights)
        names, first = [name for name, _ in named], 0 if self.pictures is None else self.pictures.layers
        of_tower = [0, *accumulate(layer < first for _, layer in named)]
        for task in self.tasks:
            before = None
            for name in sorted(task.dropped, key=lambda name: f"{name}."):
                inside = _inside(names, name)
                if not inside or any(of_tower[part.stop] > of_tower[part.start] for part in inside):
                    raise ValueError(
                        f"dropped modules of {task.name} with paged weights of a text's, got {name[:80]!r}"
                    )
                if before is not None and f"{name}.".startswith(f"{before}."):
                    raise ValueError(
                        f"dropped modules of {task.name} that differ and lie in no other, got {name[:80]!r}"
                    )
                before = name

    def _check_low_rank(self) -> None:
        for task in self.tasks:
            if task.low_rank is None:
                continue
            at = task.low_rank.weights
            if at != sorted(set(at)) or at[-1] >= len(self.weights):
                raise ValueError(f"low_rank.weights of {task.name} that ascend to at most {len(self.weights) - 1}")
            most = min(min(self.weights[each].out_features, self.weights[each].in_features) for each in at)
            if task.low_rank.rank > most:
                raise ValueError(f"low_rank.rank of {task.name} of at most {most}, got {task.low_rank.rank}")

    def dropped_weights(self) -> dict[str, frozenset[str]]:
        """Names of the paged weights that each task does without."""
        names = sorted(weight.name for weight in self.weights)
        return {
            task.name: frozenset(names[at] for module in task.dropped for part in _inside(names, module) for at in part)
            for task in self.tasks
        }

    def plain(self) -> dict[str, Any]:
        fields = super().plain()
        if self.pictures is None:
            del fields["pictures"]
        return fields

    def _check_rows(self) -> None:
        wanted = sum(table.pages(self.page_bytes) for table in self.row_tables)
        if sum(self.row_files) != wanted:
            raise ValueError(f"row_files of {wanted} pages, as row_tables need, got {sum(self.row_files)}")
        if self.pages + wanted >= 2**31:
            raise ValueError(f"fewer than 2^31 pages, got {self.pages + wanted}")

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
        return BlockShape.parse(self.block)

    @property
    def block_dtypes(self) -> set[PageDtype]:
        parts: set[PageDtype] = {LOW_RANK_DTYPE} if any(task.low_rank for task in self.tasks) else set()
        return {self.dtype, *(entry.dtype for entry in self.whole_weights), *parts}

    @property
    def blocks_per_page(self) -> int:
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
        return BlockGrid(weight.out_features, weight.in_features, self.block_shape)

    def entry(self, name: str) -> FileEntry:
        """The entry of a file."""
        if name not in self.files:
            raise BundleFormatError(MANIFEST, "files", f"an entry for {name}", "none")
        return self.files[name]

    def page_file_names(self) -> list[str]:
        """Names of all page files, in order: those of blocks, then those of rows."""
        return [name for name, _, _ in self.page_ranges()]

    def row_file_names(self) -> list[str]:
        return [row_file_name(number) for number in range(len(self.row_files))]

    def page_ranges(self) -> Iterator[tuple[str, int, int]]:
        """Name of each page file, its first page and how many pages it has, as `page_file_names` has them."""
        return page_ranges(self.page_files, self.row_files)

    @classmethod
    def parse(cls, text: bytes) -> Manifest:
        """Validate a manifest's JSON."""
        value = parse(MANIFEST, text)
        version = value.get("version") if isinstance(value, dict) else None
        if isinstance(version, int) and version != VERSION:  # before its fields, which may be others
            remedy = "compile the bundle again" if version < VERSION else "a newer weightpager may read this bundle"
            raise BundleFormatError(MANIFEST, "version", f"{VERSION}; {remedy}", version)
        manifest = checked(MANIFEST, cls, value)
        try:
            manifest._check()
        except ValueError as error:
            expected, _, other = str(error).partition(", got ")
            raise BundleFormatError(MANIFEST, "document", expected, other or "others") from None
        return manifest


def _inside(names: Sequence[str], module: str) -> list[range]:
    """Where a module itself is among sorted names, and those that lie in it."""
    own = bisect_left(names, module)
    found = range(own, own + (own < len(names) and names[own] == module))
    inside = range(bisect_left(names, f"{module}."), bisect_left(names, f"{module}/"))  # which follows the dot
    return [part for part in (found, inside) if part]


def transitions_of(manifest: Manifest) -> Transitions:
    """How often each task of a bundle follows each other one."""
    return Transitions(tuple(task.name for task in manifest.tasks), np.array(manifest.transitions))
