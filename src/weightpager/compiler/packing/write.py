"""The last stage that touches weights: pages, block tables, parameters and manifest of a bundle."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import weightpager
from weightpager.bundle import BundleWriter, Manifest, PageIndex, TaskKind
from weightpager.bundle.format.block_table import BlockNumbers
from weightpager.bundle.format.manifest import VERSION
from weightpager.bundle.format.names import MODEL, RESIDENT, private_file
from weightpager.bundle.format.page_file import file_counts, file_name
from weightpager.bundle.low_rank_pages import LowRankPages
from weightpager.bundle.settings import GENERATION, PROCESSOR
from weightpager.bundle.writer import storage_errors
from weightpager.compiler.graph.export import write_graphs
from weightpager.compiler.model.dense_model import DenseModel, parameters
from weightpager.compiler.model.parameter_format import ParameterFormat
from weightpager.compiler.model.picture_tower import processor_config
from weightpager.compiler.packing.pack import Packing
from weightpager.compiler.packing.plan import BundlePlan
from weightpager.compiler.packing.rows import WrittenRows, write_rows
from weightpager.page_dtype import block_bytes, encode, page_content


@dataclass(frozen=True)
class ParameterShares:
    """All parameters that aren't paged in blocks, by where a bundle has them.

    Attributes:
        resident: the values that the most tasks share, by name.
        private: task → its own values, by name.
        tables: tables on which all tasks agree and whose rows come on demand, by name.
    """

    resident: dict[str, Tensor]
    private: dict[str, dict[str, Tensor]]
    tables: dict[str, Tensor]


def share_parameters(of_tasks: Mapping[str, Mapping[str, Tensor]], on_demand: Collection[str]) -> ParameterShares:
    """Find what tasks share; a value that a single one of several tasks has is its own.

    ``on_demand`` names the tables whose rows may come on demand.
    """
    resident: dict[str, Tensor] = {}
    private: dict[str, dict[str, Tensor]] = {task: {} for task in of_tasks}
    for name in sorted({name for own in of_tasks.values() for name in own}):
        groups = _agreeing({task: own[name] for task, own in of_tasks.items() if name in own})
        largest = max(groups, key=len)
        if len(largest) > 1 or len(of_tasks) == 1:
            resident[name] = of_tasks[largest[0]][name]
            groups.remove(largest)
        for task in (task for group in groups for task in group):
            private[task][name] = of_tasks[task][name]
    in_all = {name for name in on_demand if not any(name in own for own in private.values())}
    tables = {name: resident.pop(name) for name in sorted(in_all & resident.keys())}
    return ParameterShares(resident, private, tables)


def _agreeing(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """Tasks in groups of the same values."""
    groups: list[list[str]] = []
    for task, tensor in tensors.items():
        group = next((group for group in groups if _same(tensors[group[0]], tensor)), None)
        if group is None:
            groups.append([task])
        else:
            group.append(task)
    return groups


def _same(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() or (a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(a, b)))


def write_bundle(writer: BundleWriter, plan: BundlePlan) -> dict[TaskKind, str]:
    """Write all files of a bundle; the manifest last.

    Returns:
        The kinds of tasks that have no graph, and why.
    """
    source = plan.weights.source
    ids = write_pages(writer, plan)
    writer.put_permutations(plan.permutations)
    form = ParameterFormat.of(source.config, source.models, plan.dtype, source.paged[0].grid.block)
    shares = _parameter_shares(plan)
    writer.put(RESIDENT, form.content(shares.resident))
    for task, values in shares.private.items():
        writer.put(private_file(task), form.content(values))
    rows = write_rows(writer, plan.rows.tables, shares.tables, plan.packing.page_bytes)
    _write_model(writer, source)
    without_graph = write_graphs(writer, source.config, [task.kind for task in plan.tasks], image_shape(source))
    manifest = _manifest(plan, rows, form)
    low_rank = LowRankPages.write(writer, manifest, plan.weights.low_rank)
    index = PageIndex(ids, plan.packing.layers, plan.packing.signatures).followed_by(low_rank.index)
    writer.put_index(index.with_rows(rows.ids))
    placed = plan.packing.placement(BlockNumbers.of(manifest), len(plan.tasks))
    writer.put_placement(placed.followed_by_empty(low_rank.index.layers))
    writer.finish(low_rank.manifest)
    return without_graph


def image_shape(source: DenseModel) -> tuple[int, int, int] | None:
    """Channels, height and width of the images or pictures that the tasks read; None where they read texts alone."""
    return None if source.images is None else source.images.shape


def write_pages(writer: BundleWriter, plan: BundlePlan, first: int = 0) -> npt.NDArray[np.uint8]:
    """Write the page files, from number ``first`` on; the pages' ids, uint8 [pages, 32]."""
    return write_page_files(writer, plan.packing, _pages(plan), first)


def write_page_files(
    writer: BundleWriter, packing: Packing, pages: Iterator[bytes], first: int = 0
) -> npt.NDArray[np.uint8]:
    """Write a packing's pages, given in order, into files from number ``first`` on; their ids, uint8 [pages, 32]."""
    ids: list[bytes] = []
    for number, count in enumerate(page_file_counts(packing), first):
        ids += writer.put_pages(file_name(number), pages, count, packing.page_bytes)
    return np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 32)


def page_file_counts(packing: Packing) -> list[int]:
    """Pages in each page file."""
    return file_counts(len(packing.layers), packing.page_bytes)


def _pages(plan: BundlePlan) -> Iterator[bytes]:
    """The bytes of every page, in order; the blocks of one stretch of layers in memory at a time."""
    packing = plan.packing
    places = packing.blocks_per_page
    for pages in packing.stretches():
        span = slice(pages.start * places, pages.stop * places)
        flat = _blocks_in_place(plan, packing.weights[span], packing.blocks[span], packing.users[span])
        block = plan.weights.source.paged[0].grid.block
        for page in flat.reshape(-1, places, flat.shape[1]):
            yield page_content(page, block, plan.dtype, packing.page_bytes)


def _blocks_in_place(
    plan: BundlePlan,
    weights: npt.NDArray[np.int32],
    blocks: npt.NDArray[np.int64],
    users: npt.NDArray[np.uint64],
) -> npt.NDArray[np.uint8]:
    """The blocks ``[places, block bytes]`` that lie in these places, zeros where none does."""
    paged = plan.weights.source.paged
    flat = np.zeros((len(weights), block_bytes(paged[0].grid.block, plan.dtype)), np.uint8)
    # All users of a block agree on its values: the first one's are taken.
    first = np.bitwise_and(users, ~users + np.uint64(1))
    for bit in np.unique(first[weights >= 0]):
        task = plan.tasks[int(bit).bit_length() - 1].name
        for number in np.unique(weights[(first == bit) & (weights >= 0)]):
            at = (weights == number) & (first == bit)
            cut = paged[number].grid.cut(plan.weights.weight(task, paged[number]).numpy())  # [rows, cols, BH, BW]
            flat[at] = encode(cut.reshape(-1, *cut.shape[2:])[blocks[at]], plan.dtype)
    return flat


def _parameter_shares(plan: BundlePlan) -> ParameterShares:
    source = plan.weights.source
    paged = {f"{info.name}.weight" for info in source.paged}
    others = {
        task.name: {name: value for name, value in parameters(source.models[task.name]).items() if name not in paged}
        for task in plan.tasks
    }
    return share_parameters(others, plan.rows.tables)


def _write_model(writer: BundleWriter, source: DenseModel) -> None:
    folder = writer.root / MODEL
    with storage_errors():
        source.config.save_pretrained(folder)
        if source.tokenizer is not None:
            _own_tokenizer(source).save_pretrained(folder)
        if source.images is not None:
            source.images.processor.save_pretrained(folder)
        if source.pictures is not None and source.images is not None:
            settings = processor_config(source.config, source.pictures, source.images.shape)
            (folder / PROCESSOR).write_text(json.dumps(settings, indent=2), encoding="utf-8")
        if source.generation:
            (folder / GENERATION).write_text(json.dumps(source.generation, indent=2), encoding="utf-8")


def _own_tokenizer(source: DenseModel) -> Any:
    """The tokenizer as a bundle has it."""
    # Not the one that has been worked with: it would be written with how it pads here, and to which lengths it cuts.
    tokenizer = copy.deepcopy(source.own_tokenizer)
    tokenizer.truncation_side = source.tokenizer.truncation_side  # where texts were cut in training
    tokenizer.init_kwargs.pop("cache_dir", None)  # a folder of the machine that the tokenizer was once loaded on
    return tokenizer


def _manifest(plan: BundlePlan, rows: WrittenRows, form: ParameterFormat) -> Manifest:
    source, tables = plan.weights.source, {entry.name for entry in rows.entries}
    return Manifest(
        format="weightpager-bundle",
        version=VERSION,
        generator=f"weightpager {weightpager.__version__}",
        block=str(source.paged[0].grid.block),
        layout="interleaved",
        dtype=plan.dtype,
        page_bytes=plan.packing.page_bytes,
        page_files=page_file_counts(plan.packing),
        layers=max(info.layer for info in source.paged) + 1,
        weights=[info.entry for info in source.paged],
        tasks=list(plan.tasks),
        transitions=plan.transitions.matrix.tolist(),
        alignment=plan.alignment,
        pictures=source.pictures,
        resident_reasons={
            name: plan.rows.reasons.get(name, reason) for name, reason in source.resident.items() if name not in tables
        },
        row_files=rows.files,
        row_tables=rows.entries,
        whole_weights=list(form.whole.values()),
        files={},
    )
