"""Training-free recovery: shared values that make every task's masked layers answer as the dense ones do.

A linear layer's values are the least squares of `least_squares`, for task t's inputs X_t of the dense model and X̃_t of
the sparse one, whose earlier layers have been refitted. Layers are refitted in the order of execution; of the data only
the hidden states at one layer boundary are kept, and they and the new values lie in the source's scratch. Where pages
have few bits a weight, the new values are rounded with error feedback before the next layer is refitted.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from weightpager.compiler.data import PIXELS, Batch
from weightpager.compiler.model.dense_model import DenseModel, PagedWeightInfo
from weightpager.compiler.recovery.layer_stream import LayerStream
from weightpager.compiler.recovery.least_squares import refitted
from weightpager.compiler.resume.journal import Journal
from weightpager.compiler.training.masks import Masks
from weightpager.page_dtype import Encoding
from weightpager.progress import StepProgress

STAGE = "refit"
"""The journal's stage of this recovery."""

_TOKENS = 16
"""Tokens of a task for each input of the widest layer: more of them hardly move a mean over pairs of inputs."""

_MASKS = "#masks"
"""What an entry of the journal has beside values: the hash of the masks that they were refitted for."""


@dataclass(frozen=True)
class _Streams:
    """One task's hidden states in both models."""

    dense: LayerStream
    sparse: LayerStream


@dataclass(frozen=True)
class _Refit:
    """A sparse model that is refitted in place, layer by layer, so that it does what the dense one does.

    Attributes:
        streams: every task's hidden states before the next layer.
        encoding: the pages' encoding, if the values shall be such as it gives back.
    """

    dense: DenseModel
    sparse: DenseModel
    masks: Masks
    streams: Mapping[str, _Streams]
    encoding: Encoding | None

    def layer(self, number: int) -> None:
        """Refit the linear layers of a layer."""
        here = [info for info in self.dense.paged if info.layer == number]
        if not self.streams:  # no calibration text has a picture
            return
        for names in next(iter(self.streams.values())).dense.fed_alike(number, [info.name for info in here]):
            self._group([info for info in here if info.name in names])

    def advance(self, number: int) -> None:
        """Let all hidden states pass a layer."""
        for task, both in self.streams.items():
            both.dense.advance(number, {})
            both.sparse.advance(number, self._weights(task, number))

    def _group(self, group: Sequence[PagedWeightInfo]) -> None:
        """Refit linear layers that take the same inputs."""
        first = group[0]
        a: list[Tensor] = []
        c: list[Tensor] = []
        for task, both in self.streams.items():
            moments = _moments(both, first.layer, first.name, self._weights(task, first.layer))
            for of_tasks, moment in zip((a, c), moments, strict=True):
                of_tasks.append(self.dense.scratch.hold(moment))
        for info in group:
            keep = [torch.from_numpy(self.masks.blocks(task, info)) for task in self.streams]
            original = self.dense.linear(next(iter(self.streams)), info.name).weight.detach()
            _put(self.sparse, info, refitted(original, a, c, keep, info.grid, self.encoding))

    def _weights(self, task: str, layer: int) -> dict[str, Tensor]:
        """A task's masked weights of one layer, by canonical name."""
        return _masked(self.sparse, self.masks, task, [info for info in self.sparse.paged if info.layer == layer])


def _masked(sparse: DenseModel, masks: Masks, task: str, paged: Sequence[PagedWeightInfo]) -> dict[str, Tensor]:
    return {info.name: masks.masked(task, info, sparse.linear(task, info.name).weight.detach()) for info in paged}


def tokens_wanted(dense: DenseModel) -> int:
    """How many tokens of each task `refit` needs; of images, how many images."""
    return _TOKENS * max(info.grid.in_features for info in dense.paged)


def overlaid(dense: DenseModel) -> DenseModel:
    """A copy in which `refit` may put other paged weights; whatever it leaves is in memory once."""
    shared = {id(tensor): tensor for task in dense.models for tensor in dense.parameters(task).values()}
    for task in dense.models:
        for info in dense.paged:
            weight = dense.linear(task, info.name).weight
            shared[id(weight)] = nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)
    return replace(dense, models=copy.deepcopy(dense.models, shared))


def refit(
    dense: DenseModel,
    sparse: DenseModel,
    masks: Masks,
    batches: Mapping[str, Sequence[Batch]],
    journal: Journal,
    progress: StepProgress,
    *,
    encodings: Mapping[range, Encoding] | None = None,
) -> None:
    """Replace the paged weights of ``sparse``, from where the journal stands; all its modules share them.

    ``sparse`` is a copy of ``dense``, as `overlaid` makes it or of its own. `tokens_wanted` says how much calibration
    data is worth its time. Stretches of layers whose pages' encoding is given get values such as it gives back.

    Raises:
        CompileError: the model's layers don't feed each other one by one; the storage refused the journal.
    """
    refitted, layers = _resume(sparse, masks, journal), max(info.layer for info in dense.paged) + 1

    def pass_through(part: range) -> None:  # with it go the stretch's hidden states, before the next ones are made
        work = _Refit(dense, sparse, masks, _streams(dense, sparse, masks, batches, part), (encodings or {}).get(part))
        for layer in part:
            if layer >= refitted:
                work.layer(layer)
            work.advance(layer)
            if layer >= refitted and (journal.due() or layer + 1 == layers):
                journal.write(STAGE, layer + 1, _state(sparse, masks))
            progress(layer + 1, layers)

    for part in dense.stretches:
        if refitted < part.stop:
            pass_through(part)


def _streams(
    dense: DenseModel, sparse: DenseModel, masks: Masks, batches: Mapping[str, Sequence[Batch]], part: range
) -> dict[str, _Streams]:
    """Each task's hidden states before a stretch of layers; of tasks without a picture none before the tower's."""
    streams = {}
    for task, of_task in batches.items():
        looks = dense.pictures is not None and part.start == 0
        seen = [batch for batch in of_task if PIXELS in batch.inputs] if looks else of_task
        if not seen:
            continue
        before = {} if looks else _masked(sparse, masks, task, sparse.tower)
        stream = partial(LayerStream, batches=seen, scratch=dense.scratch, part=part, looks=looks)
        streams[task] = _Streams(stream(dense.models[task]), stream(sparse.models[task], before=before))
    return streams


def _resume(sparse: DenseModel, masks: Masks, journal: Journal) -> int:
    """Set ``sparse`` to what an earlier run has reached under these masks: how many layers that had refitted."""
    ours = _state(sparse, masks)

    def fits(kept: Mapping[str, Tensor]) -> bool:
        alike = {name: value.shape for name, value in kept.items()} == {
            name: value.shape for name, value in ours.items()
        }
        return alike and torch.equal(kept[_MASKS], ours[_MASKS])

    reached = journal.read(STAGE, fits)
    if reached is None:
        return 0
    for info in sparse.paged:
        _put(sparse, info, reached.tensors[info.name])
    return reached.step


def _put(sparse: DenseModel, info: PagedWeightInfo, values: Tensor) -> None:
    """All tasks' modules have one parameter, which takes other values; those that it had may be another model's."""
    sparse.linear(next(iter(sparse.models)), info.name).weight.data = sparse.scratch.hold(values)


def _state(sparse: DenseModel, masks: Masks) -> dict[str, Tensor]:
    """The paged weights that all tasks share, by canonical name, without gradients; and whose masks they are for."""
    first = next(iter(sparse.models))
    values = {info.name: sparse.linear(first, info.name).weight.detach() for info in sparse.paged}
    return values | {_MASKS: torch.tensor(list(masks.digest()), dtype=torch.uint8)}


def _moments(both: _Streams, layer: int, name: str, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """E[x̃ x̃ᵀ] and E[x̃ xᵀ] per token, float32 [I, I]."""
    size = both.dense.in_features(name)
    a, c, tokens = torch.zeros(size, size), torch.zeros(size, size), 0
    pairs = zip(both.sparse.inputs(layer, weights, name), both.dense.inputs(layer, {}, name), strict=True)
    for ours, theirs in pairs:
        a.addmm_(ours.T, ours)
        c.addmm_(ours.T, theirs)
        tokens += len(ours)
    return a.div_(max(1, tokens)), c.div_(max(1, tokens))
