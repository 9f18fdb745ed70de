"""Block tables of version 1, ``tasks/<task>/tables.safetensors``: read, and turned into a `Placement`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from weightpager.bundle.files.tensor_file import Header, read_arrays
from weightpager.bundle.format.block_table import FIELDS, BlockNumbers, BlockTable
from weightpager.bundle.format.manifest import Manifest
from weightpager.bundle.format.page_file import PageIndex
from weightpager.bundle.format.placement import Placement
from weightpager.distinct import distinct
from weightpager.errors import BundleFormatError


def tables_file(task: str) -> str:
    """Where a task's block tables lie."""
    return f"tasks/{task}/tables.safetensors"


def read_placement(root: Path, manifest: Manifest, numbers: BlockNumbers, pages: PageIndex) -> Placement:
    """What the tables of all tasks say together.

    Args:
        root: bundle directory.
        manifest: of the bundle.
        numbers: of its blocks.
        pages: of the bundle.

    Raises:
        BundleFormatError: a table is missing, damaged, or not what the format says.
    """
    blocks = np.full(len(pages) * manifest.blocks_per_page, numbers.unused, numbers.dtype)
    used = []
    for task in manifest.tasks:
        file, locations = tables_file(task.name), []
        for position, table in enumerate(_read_tables(root, manifest, pages, file)):
            stored = numbers.in_layer(np.array(position), table.blocks(numbers.grids[position])).astype(numbers.dtype)
            before = blocks[table.locations]
            if ((before != numbers.unused) & (before != stored)).any() or len(distinct(table.locations)) != table.kept:
                field = f"{numbers.names[position]}.locations"
                raise BundleFormatError(file, field, "one block in each place", "several")
            blocks[table.locations] = stored
            locations.append(table.locations)
        used.append(np.concatenate(locations))
    return Placement.of(numbers, pages.layers, blocks.reshape(len(pages), -1), used)


def _read_tables(root: Path, manifest: Manifest, pages: PageIndex, file: str) -> list[BlockTable]:
    """A task's tables, in manifest order."""
    arrays = read_arrays(root, file, manifest.entry(file), lambda header: _check_header(header, manifest, file))
    tables = []
    locations = len(pages) * manifest.blocks_per_page
    for weight in manifest.weights:
        table = BlockTable(*(arrays.pop(f"{weight.name}.{field}") for field in FIELDS))
        table.validate(manifest.grid(weight), locations, file, weight.name)
        if (pages.layers[table.locations // manifest.blocks_per_page] != weight.layer).any():
            field = f"{weight.name}.locations"
            raise BundleFormatError(file, field, f"pages of layer {weight.layer}", "pages of another layer")
        tables.append(table)
    return tables


def _check_header(header: Header, manifest: Manifest, file: str) -> None:
    """Refuse a file that holds anything else than one table for each paged weight.

    Raises:
        BundleFormatError: a tensor is missing, of another dtype or shape, or one too many.
    """
    wanted = {f"{weight.name}.{field}" for weight in manifest.weights for field in FIELDS}
    if header.keys() != wanted:
        odd = min(header.keys() ^ wanted)[:400]
        raise BundleFormatError(file, odd, "one table for every paged weight", "missing or unknown tensor")
    for weight in manifest.weights:
        stated = {field: header[f"{weight.name}.{field}"] for field in FIELDS}
        BlockTable.check_header(stated, manifest.grid(weight), file, weight.name)
