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
from weightpager.compiler.data import Batch
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.model.half_layers import HalfLayer, units_of
from weightpager.compiler.selection.saliency import FloatArray
from weightpager.compiler.training.evaluate import evaluating
from weightpager.compiler.training.loss import loss, masked_logits
from weightpager.errors import CompileError
from weightpager.progress import StepProgress, silent

HALVES = "half-layers"
"""Where the saliency of half-layers stands, [half-layers], beside that of blocks that are dropped within them."""


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

    Raises:
        CompileError: it isn't finite.
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

    Where a trial differs from what it `start` s from in later layers only, earlier layers aren't computed again: the
    hidden states before each layer are held, in the source's scratch.

    Layers must take hidden states first and return them (first), as those of transformers do.
    """

    def __init__(self, source: DenseModel, task: str, batches: Sequence[Batch]) -> None:
        self._source, self._task, self._batches = source, task, batches
        base = source.models[task].base_model
        self._names = [*dict.fromkeys(half.layer for half in units_of(source))]
        self._layers = [base.get_submodule(name.removeprefix(BASE)) for name in self._names]
        self._from: frozenset[HalfLayer] = frozenset()
        self._states: list[dict[int, Tensor]] = [{} for _ in batches]
        self._in_tuple: dict[int, bool] = {}

    def start(self, dropped: Collection[HalfLayer]) -> float:
        """The loss without these, and from now on what differs from them in later layers is found faster."""
        self._from, self._states = frozenset(dropped), [{} for _ in self._batches]
        return self._loss(dropped, None)

    def loss(self, dropped: Collection[HalfLayer]) -> float:
        """The mean loss of a batch without these.

        Raises:
            CompileError: it isn't finite, though that of the dense model is.
        """
        changed = self._from.symmetric_difference(dropped)
        return self._loss(dropped, min((self._names.index(half.layer) for half in changed), default=len(self._names)))

    @torch.no_grad()
    def _loss(self, dropped: Collection[HalfLayer], first: int | None) -> float:
        """From the held states before a layer; None holds them anew."""
        source, model, losses = self._source, self._source.models[self._task], []
        with evaluating(model), without(source, self._task, dropped):
            for batch, states in zip(self._batches, self._states, strict=True):
                with self._holding(states) if first is None else self._skipping(states, first):
                    logits = masked_logits(source, None, self._task, batch)
                losses.append(loss(logits, batch.labels, source.task_file.tasks[self._task].kind))
        found = float(torch.stack(losses).mean())
        if not np.isfinite(found) and not dropped:
            raise CompileError(f"tasks.{self._task}: the loss on calibration data is NaN or infinity")
        return found if np.isfinite(found) else float(np.finfo(np.float32).max)

    @contextmanager
    def _holding(self, states: dict[int, Tensor]) -> Iterator[None]:
        def hold(number: int, _: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            states[number] = self._source.scratch.hold(given[0] if given else named["hidden_states"])
            self._in_tuple[number] = isinstance(output, tuple)

        with ExitStack() as hooks:
            for number, layer in enumerate(self._layers):
                hook = layer.register_forward_hook(partial(hold, number), with_kwargs=True)
                hooks.callback(hook.remove)
            yield

    @contextmanager
    def _skipping(self, states: dict[int, Tensor], first: int) -> Iterator[None]:
        """Layers before a layer give what the next one took."""

        def given(state: Any, *_: Any, **__: Any) -> Any:
            return state

        with ExitStack() as patches:
            for number, layer in enumerate(self._layers[: min(first, max(states))]):
                state = states[number + 1]
                _patch(patches, layer, partial(given, (state,) if self._in_tuple[number] else state))
            yield


@contextmanager
def without(source: DenseModel, task: str, dropped: Collection[HalfLayer]) -> Iterator[None]:
    """A task's module in which linear layers of these give zeros."""

    def zeros(features: int, x: Tensor) -> Tensor:
        return x.new_zeros(*x.shape[:-1], features)

    with ExitStack() as patches:
        for half in dropped:
            for name in half.weights:
                layer = source.linear(task, name)
                _patch(patches, layer, partial(zeros, layer.out_features))
        yield


def _patch(patches: ExitStack, module: nn.Module, forward: Any) -> None:
    module.forward = forward
    patches.callback(module.__dict__.pop, "forward")
