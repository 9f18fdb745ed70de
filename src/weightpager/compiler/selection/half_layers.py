"""How much each half-layer matters to a task: what its loss gains when the half-layer is left out."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from weightpager.backends.torch.architecture import BASE
from weightpager.compiler.data import Batch, TaskData
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.model.half_layers import HalfLayer, units_of
from weightpager.compiler.selection.saliency import FloatArray
from weightpager.compiler.training.evaluate import evaluating
from weightpager.compiler.training.loss import loss, masked_logits
from weightpager.errors import CompileError
from weightpager.progress import StepProgress, silent

ROWS, _ROWS_AT_ONCE = 32, 8
"""Rows that half-layers are ranked by."""

_TOKENS = 2048
"""Tokens that these rows have at most: all layers' hidden states of them are in memory."""

HALVES = "half-layers"
"""Where the saliency of half-layers stands, [half-layers], beside that of blocks that are dropped within them."""


def trial_rows(data: TaskData) -> Sequence[Batch]:
    """The rows by which half-layers are ranked."""
    return data.calibration(ROWS, _ROWS_AT_ONCE, tokens=_TOKENS)


def half_saliency(saliency: Mapping[str, FloatArray], halves: Sequence[HalfLayer]) -> FloatArray:
    """[half-layers], as it stands there, or the sum over a half-layer's blocks."""
    if HALVES in saliency:
        return saliency[HALVES]
    return np.array([sum(float(saliency[name].sum()) for name in half.weights) for half in halves])


def half_layer_saliency(
    source: DenseModel, task: str, batches: Sequence[Batch], progress: StepProgress = silent
) -> dict[str, FloatArray]:
    """Saliency of the blocks of every paged weight where half-layers, or layers, are kept; other weights' is 1.

    That of a half-layer is the loss that leaving it out alone adds, spread over its blocks; 0 where it adds none.
    """
    units = units_of(source)
    added = np.zeros(len(units))
    for done, batch in enumerate(batches, 1):  # the hidden states of one are in memory
        trials = Trials(source, task, [batch])
        dense = trials.start(())
        added += [trials.loss([half]) - dense for half in units]
        progress(done, len(batches))
    saliency = {info.name: np.ones(info.grid.count) for info in source.paged}
    for half, value in zip(units, added.tolist(), strict=True):
        for name in half.weights:
            saliency[name][:] = max(0.0, value) / (half.blocks * len(batches))
    return saliency


class Trials:
    """A task's losses without some of the `units_of` a model, on a few batches.

    Where a trial differs from what it `start` s from in later layers only, earlier layers aren't computed again: what
    each of them gave is held, in the source's scratch. Models that call a layer more than once, or in another order
    than that of their weights, are computed whole.
    """

    def __init__(self, source: DenseModel, task: str, batches: Sequence[Batch]) -> None:
        self._source, self._task, self._batches = source, task, batches
        base = source.models[task].base_model
        self._names = [*dict.fromkeys(half.layer for half in units_of(source))]
        self._layers = [base.get_submodule(name.removeprefix(BASE)) for name in self._names]
        self._from: frozenset[HalfLayer] = frozenset()
        self._held: list[list[tuple[int, Any]]] = [[] for _ in batches]  # numbers of layers, and what they gave

    def start(self, dropped: Collection[HalfLayer]) -> float:
        """The loss without these, and from now on what differs from them in later layers is found faster."""
        self._from, self._held = frozenset(dropped), [[] for _ in self._batches]
        return self._loss(dropped, None)

    def loss(self, dropped: Collection[HalfLayer]) -> float:
        """The mean loss of a batch without these. Raises `CompileError` if it isn't finite, as the dense model's is."""
        changed = self._from.symmetric_difference(dropped)
        return self._loss(dropped, min((self._names.index(half.layer) for half in changed), default=len(self._names)))

    @torch.no_grad()
    def _loss(self, dropped: Collection[HalfLayer], first: int | None) -> float:
        """With what layers before one have given; None holds that anew."""
        source, model, losses = self._source, self._source.models[self._task], []
        with evaluating(model), zeroed(source, self._task, dropped):
            for batch, held in zip(self._batches, self._held, strict=True):
                with self._holding(held) if first is None else self._skipping(held, first):
                    logits = masked_logits(source, None, self._task, batch)
                losses.append(loss(logits, batch.labels, source.task_file.tasks[self._task].kind))
        found = float(torch.stack(losses).mean())
        if not np.isfinite(found) and not dropped:
            raise CompileError(f"tasks.{self._task}: the loss on calibration data is NaN or infinity")
        return found if np.isfinite(found) else float(np.finfo(np.float32).max)

    @contextmanager
    def _holding(self, held: list[tuple[int, Any]]) -> Iterator[None]:
        def hold(number: int, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            # Of a layer that is called again nothing is skipped, so what it gives needn't be kept.
            held.append((number, self._copy(output) if number == len(held) else None))

        with ExitStack() as hooks:
            for number, layer in enumerate(self._layers):
                hooks.callback(layer.register_forward_hook(partial(hold, number)).remove)
            yield

    def _copy(self, output: Any) -> Any:
        """A layer's output with its tensors in scratch."""
        if isinstance(output, Tensor):
            return self._source.scratch.hold(output)
        return tuple(map(self._copy, output)) if type(output) is tuple else output

    @contextmanager
    def _skipping(self, held: list[tuple[int, Any]], first: int) -> Iterator[None]:
        """Layers before a layer give what they gave."""

        def given(output: Any, *_: Any, **__: Any) -> Any:
            return output

        in_order = [number for number, _ in held] == [*range(len(self._layers))]
        with ExitStack() as patches:
            for layer, (_, output) in zip(self._layers[: first if in_order else 0], held, strict=False):
                _patch(patches, layer, partial(given, output))
            yield


@contextmanager
def zeroed(source: DenseModel, task: str, dropped: Collection[HalfLayer]) -> Iterator[None]:
    """A task's module in which linear layers of these give zeros."""

    def zeros(features: int, x: Tensor) -> Tensor:
        kind = x.device.type  # of the dtype that the layer would give: DeBERTa fills scores by the dtype of queries
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        return x.new_zeros(*x.shape[:-1], features, dtype=dtype)

    with ExitStack() as patches:
        for half in dropped:
            for name in half.weights:
                layer = source.linear(task, name)
                _patch(patches, layer, partial(zeros, layer.out_features))
        yield


def _patch(patches: ExitStack, module: nn.Module, forward: Any) -> None:
    module.forward = forward
    patches.callback(module.__dict__.pop, "forward")
