"""What a bundle's pages hold: how full they are, what tasks share, what no task keeps."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from weightpager.bundle.files.tensor_file import read_header
from weightpager.bundle.format.names import RESIDENT, private_file
from weightpager.bundle.format.whole_weight import stored_in
from weightpager.bundle.reader import Bundle

_CHUNK = 1 << 16


def overlap(bundle: Bundle) -> npt.NDArray[np.float64]:
    """`overlap_of` the blocks that lie in a bundle's pages, which are all of one size."""
    signatures, counts = np.unique(bundle.placement.users(), return_counts=True)
    shared = np.zeros((len(bundle.tasks), len(bundle.tasks)))
    for start in range(0, len(signatures), _CHUNK):
        some = slice(start, start + _CHUNK)
        bits = signatures[some, None] >> np.arange(len(bundle.tasks), dtype=np.uint64)
        shared += _shared(bits & np.uint64(1) > 0, counts[some])
    return _by_need(shared)


def overlap_of(keep: npt.NDArray[np.bool_], weights: npt.ArrayLike | None = None) -> npt.NDArray[np.float64]:
    """What a switch need not load: ``[A, B]`` is (kept by A and by B) / (kept by B), and 1 where B keeps nothing.

    Masks are [blocks, tasks]; weights are the bytes of each block, [blocks], else blocks are counted.
    """
    size = np.ones(len(keep)) if weights is None else np.asarray(weights, np.float64)
    if size.shape != keep.shape[:1]:
        raise ValueError(f"weights: expected one for each of {len(keep)} blocks, got shape {size.shape}")
    return _by_need(_shared(keep, size))


def _shared(keep: npt.NDArray[np.bool_], sizes: npt.NDArray[np.number]) -> npt.NDArray[np.float64]:
    shared: npt.NDArray[np.float64] = np.where(keep, sizes[:, None], 0.0).T @ keep
    return shared


def _by_need(shared: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    needed = shared.diagonal()
    return np.divide(shared, needed, out=np.ones_like(shared), where=needed > 0)


def mean_overlap(matrix: npt.NDArray[np.float64]) -> float:
    """Mean over all ordered pairs of different tasks; 1 for a single task."""
    pairs = ~np.eye(len(matrix), dtype=bool)
    return float(matrix[pairs].mean()) if pairs.any() else 1.0


def page_fill(bundle: Bundle) -> float:
    """Share of the pages' bytes that some task uses."""
    used = int(np.count_nonzero(bundle.placement.users())) * bundle.block_bytes
    used += sum(map(partial(_low_rank_bytes, bundle), bundle.tasks))
    return used / max(1, len(bundle.pages) * bundle.page_bytes)


def _low_rank_bytes(bundle: Bundle, task: str) -> int:
    """Bytes of a task's low-rank parts in its pages, without what these are padded with."""
    layout = bundle.low_rank(task)
    return 0 if layout is None else layout.nbytes


def over_read(bundle: Bundle) -> dict[str, float]:
    """Per task: the share of its pages' bytes that it doesn't use; 0 without pages."""
    loaded = {task: len(bundle.pages_of(task)) * bundle.page_bytes for task in bundle.tasks}
    used = {
        task: len(bundle.kept_locations(task)) * bundle.block_bytes + _low_rank_bytes(bundle, task)
        for task in bundle.tasks
    }
    return {task: 1.0 - used[task] / size if size else 0.0 for task, size in loaded.items()}


_SMALL = "norms, biases and other vectors"
_ROWS = "embedding rows, which come on demand"
_MOST_NAMED = 3


@dataclass(frozen=True)
class PagedShare:
    """Parameter counts of the task that has the most.

    Attributes:
        paged: parameters in paged weights, dropped blocks included.
        others: parameters that stay in memory, by why they aren't paged; the largest number first.
    """

    paged: int
    others: Mapping[str, int]

    @classmethod
    def of(cls, paged: Iterable[int], others: Mapping[str, int], reasons: Mapping[str, str]) -> PagedShare:
        """Count elements, by weight and by other parameter's name; ``reasons`` says why matrices aren't paged."""
        found: Counter[str] = Counter()
        for name, count in others.items():
            found[reasons.get(name, _SMALL)] += count
        return cls(sum(paged), dict(found.most_common()))

    @property
    def share(self) -> float:
        return self.paged / max(1, self.paged + sum(self.others.values()))

    @property
    def is_small(self) -> bool:
        return self.share < 0.5

    @property
    def words(self) -> str:
        """The share in words; where it is small, also the largest parts of what stays in memory."""
        said = f"{self.share:.1%} of the parameters"
        if not self.is_small:
            return said
        every = max(1, self.paged + sum(self.others.values()))
        named = [f"{count / every:.1%} {why}" for why, count in list(self.others.items())[:_MOST_NAMED]]
        stays = "what isn't paged or on demand stays" if _ROWS in self.others else "the rest stays"
        rest = f"only these become sparse, and {stays} in memory for all tasks"
        return f"{said}, less than half: {rest}: {'; '.join(named)}"


def paged_share(bundle: Bundle) -> PagedShare:
    """What a bundle pages of its model."""
    resident = _counts(bundle, RESIDENT)
    private = max((_counts(bundle, private_file(task)) for task in bundle.tasks), key=lambda own: sum(own.values()))
    paged = (weight.out_features * weight.in_features for weight in bundle.manifest.weights)
    tables = {table.name: table.rows * table.columns for table in bundle.manifest.row_tables}
    reasons = {**bundle.manifest.resident_reasons, **dict.fromkeys(tables, _ROWS)}
    return PagedShare.of(paged, tables | resident | private, reasons)


def _counts(bundle: Bundle, file: str) -> dict[str, int]:
    header = read_header(bundle.path, file, bundle.entry(file))
    whole = {entry.name: entry.rows * entry.columns for entry in stored_in(header, bundle.manifest.whole_weights)}
    return {name: math.prod(stated.shape) for name, stated in header.items()} | whole


_EXPERT = re.compile(r"(?P<layer>.+)\.experts\.(?P<number>\d+)\.[a-z]+_proj")
"""A paged weight of an expert, as `weightpager.nn.experts` names it."""


@dataclass(frozen=True)
class ExpertsLeft:
    """Experts by layer, of the layers that have any.

    Attributes:
        all: number of experts of each layer.
        tasks: number of experts that each task's routers may choose: those with blocks of each of their matrices.
    """

    all: list[int]
    tasks: dict[str, list[int]]

    @property
    def words(self) -> str:
        """The counts in words, task by task."""
        each = ", ".join(f"{task} {_span(left)}" for task, left in self.tasks.items())
        return f"{each}, of {_span(self.all)} in each layer"


def experts_left(bundle: Bundle) -> ExpertsLeft | None:
    """The experts that a bundle's tasks keep; None where no experts are paged."""
    matched = {weight.name: found for weight in bundle.manifest.weights if (found := _EXPERT.fullmatch(weight.name))}
    experts: dict[str, set[str]] = {}
    for found in matched.values():
        experts.setdefault(found["layer"], set()).add(found["number"])
    if not experts:
        return None
    tasks = {}
    for task in bundle.tasks:
        tables = bundle.tables(task)
        lost = {(found["layer"], found["number"]) for name, found in matched.items() if not len(tables[name].locations)}
        tasks[task] = [len(numbers) - sum(layer == each for each, _ in lost) for layer, numbers in experts.items()]
    return ExpertsLeft([len(numbers) for numbers in experts.values()], tasks)


def layer_parts(names: Iterable[str], *, whole: bool = False) -> dict[tuple[str, bool], list[str]]:
    """Paged weights of layers by their layer and, unless these are ``whole``, by whether they are of its attention.

    A layer is a module with a number that has a module for its attention. What else lies in it feeds forward.
    """
    names = [*names]
    layers = {layer for name in names if (layer := _layer(name))}
    parts: dict[tuple[str, bool], list[str]] = {}
    for name in names:
        ends = (at for at, letter in enumerate(name) if letter == ".")
        if layer := next((name[:end] for end in ends if name[:end] in layers), ""):
            parts.setdefault((layer, not whole and bool(_layer(name))), []).append(name)
    return parts


def _layer(name: str) -> str:
    """The layer whose attention a weight is of; empty where it is of none."""
    parts = name.split(".")
    at = next((at for at, part in enumerate(parts) if "attn" in part or "attention" in part), 0)
    return ".".join(parts[:at]) if at and parts[at - 1].isdecimal() else ""


@dataclass(frozen=True)
class DroppedParts:
    """What a task does without.

    Attributes:
        attention: layers whose attention it drops, by number; within a stage by that of the stage, too, such as 0.1.
        feed_forward: layers whose other part it drops.
        others: names of weights that it drops beside these.
    """

    attention: Sequence[str]
    feed_forward: Sequence[str]
    others: Sequence[str]

    @classmethod
    def of(cls, bundle: Bundle, task: str) -> DroppedParts:
        gone, of_layers = bundle.dropped(task), layer_parts(weight.name for weight in bundle.manifest.weights)
        parts = {part: names for part, names in of_layers.items() if gone.issuperset(names)}
        attention = [_number(layer) for layer, attends in parts if attends]
        feed_forward = [_number(layer) for layer, attends in parts if not attends]
        return cls(attention, feed_forward, sorted(gone.difference(*parts.values())))

    @property
    def words(self) -> str:
        """Such as ``attention 3, 7-9; feed-forward 2``, or ``layers 3, 7-9``; empty where nothing is dropped."""
        kinds = {"attention": self.attention, "feed-forward": self.feed_forward}
        if self.attention == self.feed_forward:
            kinds = {"layers": self.attention}
        return "; ".join([*(f"{kind} {_stretches(layers)}" for kind, layers in kinds.items() if layers), *self.others])


def _number(layer: str) -> str:
    return ".".join(part for part in layer.split(".") if part.isdecimal())


def _stretches(layers: Sequence[str]) -> str:
    """Numbers of layers, in order, those that follow each other by the first and the last."""
    found: list[list[str]] = []
    for layer in layers:
        stage, _, number = layer.rpartition(".")
        before = f"{stage}.{int(number) - 1}".lstrip(".")
        if found and found[-1][-1] == before:
            found[-1].append(layer)
        else:
            found.append([layer])
    return ", ".join(each[0] if len(each) == 1 else f"{each[0]}-{each[-1]}" for each in found)


def _span(numbers: Sequence[int]) -> str:
    least, most = min(numbers), max(numbers)
    return f"{most}" if least == most else f"{least} to {most}"
