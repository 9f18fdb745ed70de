"""Half-layers: the attention part and the feed-forward part of each layer, which tasks may do without altogether."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from weightpager.bundle.report.page_statistics import layer_parts
from weightpager.compiler.model.dense_model import DenseModel, PagedWeightInfo


@dataclass(frozen=True)
class HalfLayer:
    """A part of a layer that adds to the residual stream; or both parts of a layer, as one.

    Attributes:
        layer: canonical name of the layer's module.
        weights: names of its paged weights, in order of execution.
        blocks: that these have together.
        modules: canonical names of modules that hold these weights and no other paged ones, as few as there are.
    """

    layer: str
    weights: tuple[str, ...]
    blocks: int
    modules: tuple[str, ...]


def units_of(source: DenseModel) -> tuple[HalfLayer, ...]:
    """What tasks drop whole, as the task file's ``units`` say; nothing if these are blocks. A picture tower stays."""
    units = source.task_file.units.unit
    return () if units == "block" else half_layers(tuple(source.language), whole=units == "layer")


def dropped_halves(source: DenseModel, keep: Mapping[str, npt.NDArray[np.bool_]], number: int) -> tuple[HalfLayer, ...]:
    """What a task drops whole: the `units_of` which it keeps no block. ``keep`` has masks [blocks, tasks]."""
    return tuple(half for half in units_of(source) if not any(keep[name][:, number].any() for name in half.weights))


@lru_cache(maxsize=4)
def half_layers(paged: tuple[PagedWeightInfo, ...], *, whole: bool = False) -> tuple[HalfLayer, ...]:
    """Those of a model's layers, in order of execution; or whole layers. `layer_parts` says what a layer is."""
    blocks = {info.name: info.grid.count for info in paged}
    return tuple(
        HalfLayer(layer, tuple(weights), sum(map(blocks.__getitem__, weights)), tuple(_cover({*weights}, blocks)))
        for (layer, _), weights in layer_parts(blocks, whole=whole).items()
    )


def _around(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))


def _cover(wanted: set[str], names: Iterable[str]) -> list[str]:
    """The outermost modules all of whose paged weights are wanted."""
    others = {around for name in names if name not in wanted for around in (*_around(name), name)}
    return list(
        dict.fromkeys(
            next(each for each in (*_around(name), name) if each not in others) for name in names if name in wanted
        )
    )
