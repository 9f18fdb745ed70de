"""`Bundle`: a bundle directory, opened and validated."""

from __future__ import annotations

import os
import shlex
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from weightpager.bundle.files.entry import FileEntry, read_checked
from weightpager.bundle.files.new_directory import left_aside
from weightpager.bundle.files.regular_file import is_hollow, open_regular
from weightpager.bundle.files.tensor_file import exactly, read_arrays, read_header
from weightpager.bundle.format import page_file, placement, row_table
from weightpager.bundle.format.block_table import BlockNumbers, BlockTable
from weightpager.bundle.format.low_rank import LowRankLayout
from weightpager.bundle.format.manifest import Manifest, Pictures, TaskEntry, TaskKind
from weightpager.bundle.format.names import MANIFEST, MANIFEST_HASH
from weightpager.bundle.format.page_file import PageIndex
from weightpager.bundle.format.picture_tower import check_shared
from weightpager.bundle.format.placement import Permutations, Placement
from weightpager.bundle.format.row_table import RowTable
from weightpager.bundle.format.size_limits import check_sizes
from weightpager.bundle.format.whole_weight import WholeWeightEntry, stored_in
from weightpager.config import format_size
from weightpager.errors import BundleError, BundleFormatError, UnknownTaskError, of_bundle, shown
from weightpager.graph import Graph, read_graph
from weightpager.graph.file import FEATURES, graph_file
from weightpager.machine.paths import has_directory, has_file
from weightpager.page_dtype import block_bytes

LOOKS = 3
"""How often a bundle is read that others replace meanwhile. On some file systems each look finds another directory."""

_MANIFEST_LIMIT = 64 * 2**20  # no honest manifest is larger; a hostile one must not be read into memory whole


class Bundle:
    """A bundle directory, checked: what is in it and where. Reads no page.

    Opening checks the manifest and its hash, the page index, the block tables and the shape of every page file, and
    where tasks share a picture tower that none has a part of its own there; `entry` and `read` check any other file
    when it is used. Pages are checked when they are loaded.

    Methods raise `UnknownTaskError` for a task that isn't there, and `BundleFormatError` where a file is missing,
    damaged, or not what the format says.

    Attributes:
        path: the directory.
        manifest: a `Manifest`, what ``manifest.json`` says.
        index: a `PageIndex` of all pages.
        pages: a `PageIndex` of those that hold blocks: the first ones.
        placement: a `Placement`, where each task's blocks lie.
        tasks: entries of the tasks by name, in their order.
    """

    def __new__(cls, path: str | Path = "", *parts: Any, **named: Any) -> Bundle:
        if path and not parts and not named:
            where = shown(str(path))
            raise TypeError(f"Bundle.open({where}) opens a bundle, and weightpager.load({where}) runs its tasks")
        return super().__new__(cls)

    def __init__(self, path: Path, manifest: Manifest, index: PageIndex, placement: Placement) -> None:
        self.path = path
        self.manifest = manifest
        self.index = index
        self.pages = index.first(manifest.pages)
        self.placement = placement
        self.tasks: dict[str, TaskEntry] = {task.name: task for task in manifest.tasks}

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Open and validate a bundle directory.

        Raises:
            BundleError: there is none, or anything in it is not what the format says.
        """
        root = Path(path)
        if not has_directory(root):
            lost = os.path.islink(root) and not has_file(root)  # noqa: PTH114 - no error where nobody may look
            found = "a link to nothing" if lost else "a file" if os.path.lexists(root) else "nothing there"
            raise _no_bundle(root, found)
        if not any(os.path.lexists(root / name) for name in (MANIFEST, MANIFEST_HASH)):
            raise _no_bundle(root, f"a directory without {MANIFEST}")
        with of_bundle(root):
            return cls._look(root, LOOKS)

    @classmethod
    def _look(cls, root: Path, looks: int) -> Bundle:
        before = place_of(root)
        try:
            return cls._read(root)
        except BundleError:
            if looks == 1 or place_of(root) == before:
                raise
        # A part was read of another bundle, which has taken this one's place meanwhile.
        return cls._look(root, looks - 1)

    @classmethod
    def _read(cls, root: Path) -> Bundle:
        manifest = read_manifest(root)
        index = read_page_index(root, manifest)
        bundle = cls(root, manifest, index, read_placement(root, manifest, index.first(manifest.pages)))
        bundle._check()
        return bundle

    def __repr__(self) -> str:
        size = format_size((self.manifest.pages + self.manifest.row_pages) * self.page_bytes)
        return f"<Bundle {str(self.path)!r}: {size} in pages, tasks {shown(list(self.tasks))}>"

    @property
    def row_ids(self) -> npt.NDArray[np.uint8]:
        """Ids of the pages that hold rows, uint8 [row pages, 32]."""
        return self.index.ids[self.manifest.pages :]

    @property
    def pictures(self) -> Pictures | None:
        """How pictures stand in its tasks' texts; None where no task reads any there."""
        return self.manifest.pictures

    @property
    def page_bytes(self) -> int:
        return self.manifest.page_bytes

    @property
    def block_bytes(self) -> int:
        """Bytes of a block, its scales included."""
        return block_bytes(self.manifest.block_shape, self.manifest.dtype)

    @cached_property
    def task_numbers(self) -> dict[str, int]:
        """The number of each task by name: its bit in every signature."""
        return {task.name: number for number, task in enumerate(self.manifest.tasks)}

    @cached_property
    def dense_bytes(self) -> int:
        """Bytes of all paged weights if no block were dropped."""
        return sum(self.manifest.grid(weight).count for weight in self.manifest.weights) * self.block_bytes

    def task(self, name: str) -> TaskEntry:
        if name not in self.tasks:
            raise UnknownTaskError(name, self.tasks)
        return self.tasks[name]

    def tables(self, task: str) -> dict[str, BlockTable]:
        """Block tables of a task, by paged weight, in execution order; made anew each time."""
        self.task(task)
        return self.placement.tables(self.task_numbers[task])

    def dropped(self, task: str) -> frozenset[str]:
        """Names of the paged weights that a task does without: they give zeros, and no bias is added."""
        self.task(task)
        return self._dropped[task]

    @cached_property
    def _dropped(self) -> dict[str, frozenset[str]]:
        return self.manifest.dropped_weights()

    def low_rank(self, task: str) -> LowRankLayout | None:
        """How a task's low-rank parts lie in its `low_rank_pages`; None if it has none."""
        self.task(task)
        return self._layouts[task]

    @cached_property
    def _layouts(self) -> dict[str, LowRankLayout | None]:
        return {task.name: LowRankLayout.of(self.manifest, task) for task in self.manifest.tasks}

    def low_rank_pages(self, task: str) -> npt.NDArray[np.int64]:
        """Indices of the pages that hold a task's low-rank parts, int64 [pages], ascending."""
        pages = self.pages_of(task)
        return pages[self._without_blocks[pages]]

    def low_rank_bytes(self, task: str) -> int:
        """Bytes of a task's low-rank pages."""
        return len(self.low_rank_pages(task)) * self.page_bytes

    @cached_property
    def _without_blocks(self) -> npt.NDArray[np.bool_]:
        return self.placement.without_blocks()

    def pages_of(self, task: str) -> npt.NDArray[np.int64]:
        """Indices of the pages that a task needs, int64 [pages], ascending."""
        self.task(task)
        return self.pages.of_task(self.task_numbers[task])

    def kept_locations(self, task: str) -> npt.NDArray[np.int64]:
        """Locations of all blocks that a task keeps, int64 [blocks], ascending, each once."""
        self.task(task)
        return self.placement.locations_of(self.task_numbers[task])

    def whole_weights(self, file: str) -> list[WholeWeightEntry]:
        """The whole weights that a parameter file has as blocks; ``file`` is its name in the manifest."""
        entries = self.manifest.whole_weights
        return stored_in(read_header(self.path, file, self.entry(file)), entries) if entries else []

    def graph(self, kind: str) -> Graph | None:
        """The forward pass of a kind of tasks, or of pictures' `FEATURES`; None if the bundle has none."""
        name = graph_file(kind)
        return read_graph(name, self.read(name), kind) if name in self.manifest.files else None

    @property
    def takes_images(self) -> bool:
        return any(task.takes_images for task in self.manifest.tasks)

    @property
    def graph_kinds(self) -> tuple[TaskKind, ...]:
        """The kinds of its tasks that have a graph."""
        kinds = dict.fromkeys(task.kind for task in self.manifest.tasks)
        return tuple(kind for kind in kinds if graph_file(kind) in self.manifest.files)

    @property
    def has_graphs(self) -> bool:
        """Whether every task can be run by graphs alone."""
        tower = self.pictures is None or graph_file(FEATURES) in self.manifest.files
        return tower and {task.kind for task in self.manifest.tasks} == {*self.graph_kinds}

    def permutations(self) -> Permutations:
        """The order in which the compiler has put the tensors' axes; empty where it changed none."""
        file = placement.PERMUTATIONS
        if file not in self.manifest.files:
            return placement.NOTHING_MOVED
        arrays = read_arrays(self.path, file, self.entry(file), placement.check_header)
        permutations = Permutations.parse(arrays)
        sizes = {f"{weight.name}.weight": (weight.out_features, weight.in_features) for weight in self.manifest.weights}
        for (tensor, axis), order in permutations.orders.items():
            shape = sizes.get(tensor)
            if shape is not None and (axis >= len(shape) or shape[axis] != len(order)):
                raise BundleFormatError(file, f"{tensor}:{axis}", f"an axis of {list(shape)}", f"{len(order)} indices")
        return permutations

    @cached_property
    def row_tables(self) -> dict[str, RowTable]:
        """Tables whose rows are in pages, by the parameter's canonical name."""
        file, entries = row_table.FILE, self.manifest.row_tables
        if not entries:
            return {}
        arrays = read_arrays(self.path, file, self.entry(file), exactly(file, row_table.header(entries)))
        return row_table.parse(arrays, entries, self.page_bytes)

    def entry(self, name: str) -> FileEntry:
        """Size and hash of a file, as the manifest states them; ``name`` is its path in the bundle."""
        return self.manifest.entry(name)

    def read(self, name: str) -> bytes:
        """A file's bytes, checked against its entry."""
        return read_checked(self.path, name, self.entry(name))

    def _check(self) -> None:
        """Refuse files that don't go together."""
        for name, _, pages in self.manifest.page_ranges():
            page_file.check(self.path / name, pages, self.page_bytes)
        file, rows = page_file.FILE, slice(self.manifest.pages, None)
        check_shared(self.path, self.manifest, self.placement)
        low_rank = self._check_low_rank()
        if not np.array_equal(self.placement.signatures() | low_rank, self.pages.signatures):
            wanted = "the tasks that use a block in each page, or have their low-rank parts there"
            raise BundleFormatError(file, "signatures", wanted, "others")
        self._check_dropped()
        self.permutations()
        if self.index.signatures[rows].any():
            raise BundleFormatError(file, "signatures", "no tasks of pages that hold rows", "others")
        if self.index.layers[rows].any():
            raise BundleFormatError(file, "layers", "0 of pages that hold rows", "others")
        for table in self.row_tables:
            if table in {f"{weight.name}.weight" for weight in self.manifest.weights}:
                raise BundleFormatError(MANIFEST, f"row_tables.{table}", "a table that isn't paged in blocks", "both")

    def _check_low_rank(self) -> npt.NDArray[np.uint64]:
        """Refuse low-rank pages that a task's entry doesn't say; which task each belongs to, as a signature [pages]."""
        found = np.zeros(len(self.pages), np.uint64)
        for number, task in enumerate(self.manifest.tasks):
            pages, layout = self.low_rank_pages(task.name), self.low_rank(task.name)
            wanted = 0 if layout is None else layout.pages
            if len(pages) != wanted:
                what = f"{wanted} low-rank pages of {task.name}, as the manifest says"
                raise BundleFormatError(page_file.FILE, "signatures", what, len(pages))
            if layout is not None and not np.array_equal(self.pages.layers[pages], layout.page_layers()):
                what = f"those of the low-rank parts of {task.name}, in their order"
                raise BundleFormatError(page_file.FILE, "layers", what, "others")
            found[pages] |= np.uint64(1) << np.uint64(number)
        return found

    def _check_dropped(self) -> None:
        """Refuse tasks that keep blocks of what they say they do without."""
        numbers = self.placement.numbers
        for number, task in enumerate(self.manifest.tasks):
            if not task.dropped:
                continue
            # Lengths are enough: no table need be built.
            found = numbers.split(np.sort(self.placement.numbers_at(self.placement.locations_of(number))))
            dropped = self.dropped(task.name)
            for name, blocks in zip(numbers.names, found, strict=True):
                if name in dropped and (kept := blocks.stop - blocks.start):
                    raise BundleFormatError(
                        placement.FILE, f"used.{number}", f"no blocks of {name}, which {task.name} has dropped", kept
                    )


def place_of(root: Path) -> tuple[int, int] | None:
    """What tells the directory at a path from another one that takes its place; None if there is none."""
    try:
        found = root.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def check_in_place(bundle: Bundle) -> None:
    """Raise a `BundleError` unless what lies at a bundle's path can be read and is still the same bundle."""
    with of_bundle(bundle.path):
        found = read_manifest(bundle.path)
    if found != bundle.manifest:
        raise BundleError(
            f"{bundle.path}: expected the bundle that was opened, found another one, by which a command has replaced "
            "it meanwhile; run this one again"
        )


def _no_bundle(root: Path, found: str) -> BundleError:
    place = Path(os.path.realpath(root))
    old = left_aside(place)
    if old is not None:
        left = f"and {old}, as left by a command that was killed while it replaced the bundle"
        back = f"mv -T {shlex.quote(str(old))} {shlex.quote(str(place))}"
        return BundleError(f"{root}: expected a bundle directory, found {found}, {left}; put it back: {back}")
    hint = "'weightpager ls FOLDER' lists bundles, 'weightpager compile' makes one"
    return BundleError(f"{root}: expected a bundle directory, found {found}; {hint}")


def opened_files(manifest: Manifest) -> set[str]:
    """Names of the files that `Bundle.open` reads and compares with their hashes."""
    rows = {row_table.FILE} if manifest.row_tables else set()
    return {page_file.FILE, placement.FILE, placement.PERMUTATIONS, *rows}


def read_page_index(root: Path, manifest: Manifest) -> PageIndex:
    """A bundle's page index, pages of rows included, checked against its entry."""
    name, pages = page_file.FILE, manifest.pages + manifest.row_pages
    arrays = read_arrays(root, name, manifest.entry(name), exactly(name, PageIndex.header(pages)))
    return PageIndex.parse(arrays, manifest.layers)


def read_placement(root: Path, manifest: Manifest, pages: PageIndex) -> Placement:
    """A bundle's block tables, checked against its entry, of the pages that hold blocks."""
    numbers, name = BlockNumbers.of(manifest), placement.FILE
    arrays = read_arrays(root, name, manifest.entry(name), exactly(name, Placement.header(numbers, manifest)))
    found = Placement(numbers, pages.layers, **arrays)
    found.validate()
    return found


def read_manifest(root: Path) -> Manifest:
    """A bundle's manifest, checked against its hash."""
    try:
        with open_regular(root / MANIFEST) as file:
            size = os.fstat(file.fileno()).st_size
            if size > _MANIFEST_LIMIT or is_hollow(file, size):
                raise BundleFormatError(MANIFEST, "size", f"at most {_MANIFEST_LIMIT} stored bytes", f"{size} bytes")
            text = file.read(size)
        with open_regular(root / MANIFEST_HASH) as file:
            wanted = file.read(66)  # one byte more than it should have
    except OSError as error:
        name = Path(str(error.filename)).name
        raise BundleFormatError(name, "file", "a readable file", error.strerror or error) from error
    found = blake3(text).hexdigest().encode() + b"\n"
    if found != wanted:
        raise BundleFormatError(MANIFEST, "BLAKE3", wanted.decode("ascii", "replace").strip(), found.decode().strip())
    manifest = Manifest.parse(text)
    check_sizes(manifest)
    return manifest
