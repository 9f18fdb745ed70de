"""The last stage that touches weights: pages, block tables, parameters and manifest of a bundle."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import weightpager
from weightpager.bundle import BundleWriter, Manifest, PageIndex, TaskEntry, TaskKind, WeightEntry
from weightpager.bundle.format.block_numbers import BlockNumbers
from weightpager.bundle.format.manifest import VERSION
from weightpager.bundle.format.names import MODEL, RESIDENT, private_file
from weightpager.bundle.format.page_file import file_counts, file_name
from weightpager.bundle.format.permutations import NOTHING_MOVED, Permutations
from weightpager.bundle.settings.checks import GENERATION
from weightpager.bundle.writer import storage_errors
from weightpager.compiler.graph.write import write_graphs
from weightpager.compiler.model.dense_model import Source, parameters
from weightpager.compiler.model.parameter_format import ParameterFormat
from weightpager.compiler.model.task_weights import TaskWeights
from weightpager.compiler.packing.pack import Packing
from weightpager.compiler.recovery.low_rank import write_adapters
from weightpager.compiler.rows.row_uses import NO_ROWS, RowChoice
from weightpager.compiler.rows.write import WrittenRows, write_rows
from weightpager.compiler.training.masks import Keep
from weightpager.page_dtype import PageDtype, block_bytes, encode, page_content
from weightpager.transitions import Transitions


@dataclass(frozen=True)
class BundlePlan:
    """All that has been decided about a bundle before its first byte is written.

    Attributes:
        dtype: of the pages.
        weights: the values.
        keep: who keeps what.
        packing: where it lies.
        tasks: in the order of the signatures' bits.
        transitions: between them.
        alignment: strength λ that the masks were aligned with; None for one shared mask.
        permutations: that the values have gone through.
        rows: embedding tables that come on demand.
    """

    dtype: PageDtype
    weights: TaskWeights
    keep: Keep
    packing: Packing
    tasks: tuple[TaskEntry, ...]
    transitions: Transitions
    alignment: float | None
    permutations: Permutations = NOTHING_MOVED
    rows: RowChoice = NO_ROWS


def write_bundle(writer: BundleWriter, plan: BundlePlan) -> dict[TaskKind, str]:
    """Write all files of a bundle; the manifest last.

    Returns:
        The kinds of tasks that have no graph, and why.
    """
    source = plan.weights.source
    ids = write_pages(writer, plan)
    writer.put_permutations(plan.permutations)
    form = ParameterFormat.of(source.config, source.models, plan.dtype, source.paged[0].grid.block)
    tables = _write_parameters(writer, plan, form)
    rows = write_rows(writer, plan.rows.tables, tables, plan.packing.page_bytes)
    writer.put_index(PageIndex(ids, plan.packing.layers, plan.packing.signatures).with_rows(rows.ids))
    write_adapters(writer, plan.weights, plan.tasks)
    _write_model(writer, source)
    without_graph = write_graphs(writer, source.config, [task.kind for task in plan.tasks], image_shape(source))
    manifest = _manifest(plan, rows, form)
    writer.put_placement(plan.packing.placement(BlockNumbers.of(manifest), len(plan.tasks)))
    writer.finish(manifest)
    return without_graph


def image_shape(source: Source) -> tuple[int, int, int] | None:
    """Channels, height and width of the images that the tasks read; None where they read texts."""
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


def _write_parameters(writer: BundleWriter, plan: BundlePlan, form: ParameterFormat) -> dict[str, Tensor]:
    """Write each parameter: the values that the most tasks share are resident, other tasks' are private.

    Returns:
        Of those that all tasks agree on, the tables that come on demand. They aren't written.
    """
    source, tasks = plan.weights.source, [task.name for task in plan.tasks]
    skipped = {f"{info.name}.weight" for info in source.paged}
    of_task = {task: parameters(source.models[task]) for task in tasks}
    resident: dict[str, Tensor] = {}
    private: dict[str, dict[str, Tensor]] = {task: {} for task in tasks}
    for name in sorted({name for values in of_task.values() for name in values} - skipped):
        groups = _agreeing({task: of_task[task][name] for task in tasks if name in of_task[task]})
        largest = max(groups, key=len)
        for group in groups:
            if group is largest and (len(group) > 1 or len(tasks) == 1):
                resident[name] = of_task[group[0]][name]
            else:
                for task in group:
                    private[task][name] = of_task[task][name]
    in_all = {name for name in plan.rows.tables if not any(name in own for own in private.values())}
    tables = {name: resident.pop(name) for name in sorted(in_all & resident.keys())}
    writer.put(RESIDENT, form.content(resident))
    for task in tasks:
        writer.put(private_file(task), form.content(private[task]))
    return tables


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


def _write_model(writer: BundleWriter, source: Source) -> None:
    folder = writer.root / MODEL
    with storage_errors():
        source.config.save_pretrained(folder)
        _preprocessor(source).save_pretrained(folder)
        if source.generation:
            (folder / GENERATION).write_text(json.dumps(source.generation, indent=2), encoding="utf-8")


def _preprocessor(source: Source) -> Any:
    """What transformers saves beside a model: the image processor, or the tokenizer."""
    if source.images is not None:
        return source.images.processor
    # Not the one that has been worked with: it would be written with how it pads here, and to which lengths it cuts.
    tokenizer = copy.deepcopy(source.own_tokenizer)
    tokenizer.truncation_side = source.tokenizer.truncation_side  # where texts were cut in training
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
        weights=[
            WeightEntry(
                name=info.name,
                layer=info.layer,
                out_features=info.grid.out_features,
                in_features=info.grid.in_features,
            )
            for info in source.paged
        ],
        tasks=list(plan.tasks),
        transitions=plan.transitions.matrix.tolist(),
        alignment=plan.alignment,
        resident_reasons={
            name: plan.rows.reasons.get(name, reason) for name, reason in source.resident.items() if name not in tables
        },
        row_files=rows.files,
        row_tables=rows.entries,
        tied_tables=list(form.tied.values()),
        files={},
    )
