"""Rows of embedding tables: which of them texts use, and the files that hold them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from weightpager.backends.torch.architecture import BASE
from weightpager.bundle import BundleWriter
from weightpager.bundle.format.page_file import file_counts, row_file_name
from weightpager.bundle.format.picture_tower import is_before_words
from weightpager.bundle.format.row_table import CURVE, RowTableEntry, table_pages
from weightpager.compiler.data import TaskData
from weightpager.compiler.model.dense_model import DenseModel, parameters
from weightpager.compiler.model.paged_weights import canonical, embedding_tables
from weightpager.nn.embedding import is_plain_embedding
from weightpager.task_data.texts import Example


@dataclass
class Lookups:
    """What was seen of a table.

    Attributes:
        ids: int64 [n], the rows that were looked up, as often as each text alone would have looked them up.
        words: whether these were the texts' own tokens, each time.
        read: whether the model read the table past its lookups.
    """

    ids: list[npt.NDArray[np.int64]] = field(default_factory=list)
    words: bool = True
    read: bool = False


class _Watched(nn.Embedding):
    """An embedding while it is watched."""

    def forward(self, ids: Tensor) -> Tensor:
        """Call the module, and note the ids that it looks up."""
        seen, texts = self.__dict__["_seen"], self.__dict__["_texts"]
        rows = ids.detach().reshape(-1).to(torch.int64).numpy()
        # What has no row for each text, such as positions, is looked up once for all of them.
        together = texts is not None and len(ids) != len(texts) and ids.numel() != texts.numel()
        seen.ids.append(np.tile(rows, len(texts) if together else 1))
        seen.words = seen.words and texts is not None and ids.shape == texts.shape and bool(torch.equal(ids, texts))
        self.__dict__["_inside"] = True
        try:
            return super().forward(ids)
        finally:
            self.__dict__["_inside"] = False

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        """A parameter, as `nn.Module` finds it."""
        if name == "weight" and not self.__dict__["_inside"]:
            self.__dict__["_seen"].read = True
        return super().__getattr__(name)


def watch(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> dict[str, Lookups]:
    """Run a model on a batch; what it did with each table that it looks rows up in, by canonical name."""
    tables = {name: module for name, module in model.named_modules() if is_plain_embedding(module)}
    prefix = model.base_model_prefix + "."
    with _watched(tables, inputs.get("input_ids")) as seen, torch.no_grad():
        model(**inputs)
    return {canonical(f"{name}.weight", prefix): found for name, found in seen.items() if found.ids}


@contextmanager
def _watched(tables: Mapping[str, nn.Embedding], texts: Tensor | None) -> Iterator[dict[str, Lookups]]:
    seen = {name: Lookups() for name in tables}
    try:
        for name, module in tables.items():
            module.__dict__.update(_seen=seen[name], _texts=texts, _inside=False)
            module.__class__ = _Watched
        yield seen
    finally:
        for module in tables.values():
            module.__class__ = nn.Embedding
            for key in ("_seen", "_texts", "_inside"):
                module.__dict__.pop(key, None)


LEAST_BYTES = 1 << 18
"""A smaller table, in bfloat16, stays in memory: little is saved, and a fault costs as much as any. Positions of an
encoder are larger: 393 KB for 512 of 384 columns, of which texts of 64 tokens use an eighth."""

_WATCHED = 32
"""Texts of each task, at most, that are run to see what is looked up; all training texts' words are counted beside."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RowUses:
    """A table that comes on demand, before its values are known.

    Attributes:
        order: int64 [rows], the row in each place.
        columns: how many each row has.
        lookups: rows that a text looks up, on average.
        curves: task → share of its look-ups that the first i/64 of the places serve, [65].
    """

    order: npt.NDArray[np.int64]
    columns: int
    lookups: float
    curves: Mapping[str, Floats]

    @classmethod
    def of(cls, counts: Mapping[str, Floats], texts: Mapping[str, int], columns: int) -> RowUses:
        """From how often each task's texts look each row up, [rows], and how many texts these were.

        Every task counts as much as any other one, however many texts it has. Of rows that are used equally often,
        lower numbers come first: vocabularies begin with what is frequent.
        """
        shares = {task: of_task / max(1.0, of_task.sum()) for task, of_task in counts.items()}
        order = np.argsort(-np.sum(list(shares.values()), axis=0), kind="stable")
        edges = np.arange(CURVE + 1) * len(order) // CURVE
        curves = {task: _curve(share[order], edges) for task, share in shares.items()}
        means = [counts[task].sum() / max(1, texts[task]) for task in counts]
        return cls(order, columns, float(np.mean(means)), curves)

    @property
    def places(self) -> npt.NDArray[np.int64]:
        """Each row's place, int64 [rows]."""
        places = np.empty_like(self.order)
        places[self.order] = np.arange(len(self.order))
        return places

    def entry(self, name: str) -> RowTableEntry:
        """The table's entry in the manifest."""
        uses = {task: curve.tolist() for task, curve in self.curves.items()}
        return RowTableEntry(name=name, rows=len(self.order), columns=self.columns, lookups=self.lookups, uses=uses)


@dataclass(frozen=True)
class RowChoice:
    """The embedding tables that come on demand, and why others stay in memory, by canonical name."""

    tables: Mapping[str, RowUses]
    reasons: Mapping[str, str]

    def entries(self) -> list[RowTableEntry]:
        """The manifest's entries of the tables."""
        return [uses.entry(name) for name, uses in self.tables.items()]


NO_ROWS = RowChoice({}, {})
"""All tables stay in memory."""


def choose_tables(source: DenseModel, data: Mapping[str, TaskData]) -> RowChoice:
    """Find the tables of the shared base that are large and only looked up."""
    if source.task_file.rows != "on-demand" or source.task_file.dtype == "float32" or source.tokenizer is None:
        return NO_ROWS
    large, reasons = _large_tables(source)
    if not large:
        return RowChoice({}, reasons)
    batches = {task: _batch(data.get(task)) for task in source.models}
    seen = {task: watch(model, batches[task]) for task, model in source.models.items()}
    tables = {}
    for name, (rows, columns) in large.items():
        of_tasks = {task: found[name] for task, found in seen.items() if name in found}
        if len(of_tasks) < len(seen) or any(one.read for one in of_tasks.values()):
            reasons[name] = "embedding that is used past its lookup"
            continue
        counts = {task: _counts(one, data.get(task), rows) for task, one in of_tasks.items()}
        texts = {
            task: len(data[task].train) if one.words and task in data else len(batches[task]["input_ids"])
            for task, one in of_tasks.items()
        }
        tables[name] = RowUses.of(counts, texts, columns)
    return RowChoice(tables, reasons)


def _large_tables(source: DenseModel) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Rows and columns of each large table that all tasks share and only look up; why others stay that look like it."""
    large, reasons = {}, {}
    first: PreTrainedModel = next(iter(source.models.values()))
    shared = parameters(first)
    for name in sorted(embedding_tables(source.models)):
        tensor = shared.get(name)
        if tensor is None or not name.startswith(BASE) or is_before_words(name):
            continue
        if any(parameters(model).get(name) is not tensor for model in source.models.values()):
            reasons[name] = "embedding that tasks have values of their own for"
        elif 2 * tensor.numel() < LEAST_BYTES:
            reasons[name] = "embedding too small to come on demand"
        else:
            large[name] = (tensor.shape[0], tensor.shape[1])
    return large, reasons


def _batch(data: TaskData | None) -> dict[str, Any]:
    """Inputs to watch a task by; any words where it has no data."""
    if data is None:
        ids = torch.arange(_WATCHED)[None]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return dict(data.calibration(_WATCHED, _WATCHED)[0].inputs)


def _counts(seen: Lookups, data: TaskData | None, rows: int) -> Floats:
    """How often each row is looked up by a task's training texts, or where their words don't say, by those watched.

    Without data every row counts as any other, and the rows stay in the vocabulary's order.
    """
    if data is None:
        return np.ones(rows)
    words: Sequence[npt.NDArray[np.int64]] = seen.ids
    if seen.words:
        words = [np.asarray(item.tokens, np.int64) for item in data.train if isinstance(item, Example)]
    return np.asarray(np.bincount(np.concatenate(words), minlength=rows), np.float64)


def _curve(shares: Floats, edges: npt.NDArray[np.int64]) -> Floats:
    served = np.concatenate([[0.0], np.cumsum(shares)])[edges]
    return np.asarray(np.minimum(served / max(served[-1], np.finfo(float).tiny), 1.0))


@dataclass(frozen=True)
class WrittenRows:
    """What the manifest and the page index say of the rows that were written.

    Attributes:
        entries: the manifest's entry of each table.
        files: number of pages in each page file.
        ids: the pages' ids, uint8 [pages, 32].
    """

    entries: list[RowTableEntry]
    files: list[int]
    ids: npt.NDArray[np.uint8]


def write_rows(
    writer: BundleWriter, uses: Mapping[str, RowUses], values: Mapping[str, Tensor], page_bytes: int
) -> WrittenRows:
    """Write tables, whose ``values`` are [rows, columns] by name, and where their rows lie."""
    entries = [uses[name].entry(name) for name in values]
    pages = (
        table_pages(table.detach().float().numpy(), uses[name].order, page_bytes) for name, table in values.items()
    )
    count = sum(entry.pages(page_bytes) for entry in entries)
    ids, files = write_row_pages(writer, chain.from_iterable(pages), count, page_bytes)
    writer.put_row_places({entry.name: uses[entry.name].places.astype(entry.places_dtype()) for entry in entries})
    return WrittenRows(entries, files, ids)


def write_row_pages(
    writer: BundleWriter, pages: Iterator[bytes], count: int, page_bytes: int
) -> tuple[npt.NDArray[np.uint8], list[int]]:
    """Write so many pages of rows; their ids, uint8 [count, 32], and how many are in each file."""
    ids: list[bytes] = []
    files = file_counts(count, page_bytes)
    for number, some in enumerate(files):
        ids += writer.put_pages(row_file_name(number), pages, some, page_bytes)
    return np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 32), files
