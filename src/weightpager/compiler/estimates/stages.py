"""What each stage of a compile takes in memory, training apart, told before it runs.

These are upper estimates of bytes beside the process and its packages. Where the model lies in the scratch, so does
what is as large as the model: that is page cache, which is given up where memory is short, and counts as nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from weightpager.compiler.estimates.activations import activation_bytes, answer_bytes, forward_bytes, key_value_bytes
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.model.named_parameters import parameters
from weightpager.compiler.recovery.closed_form import tokens_wanted
from weightpager.compiler.recovery.rounding import ROUNDED
from weightpager.compiler.reorder.dimensions import dimensions
from weightpager.compiler.training.device import multiplies_in_bfloat16, training_device
from weightpager.page_dtype import block_bytes
from weightpager.task_data.batches import EVAL_BATCH, at_once

_FEW = 4
"""Texts of a batch that tries floors, or whether a reordered model answers as before."""

_MOVED_BYTES = 12
"""Copies of one weight's elements, in float32, while they are reordered."""

_ASSIGNED_BYTES = 12
"""Per unit and place of a dimension whose units are assigned: three matrices in float32."""

_SOLVED_BYTES = 44
"""Per element of a weight that least squares are solved for: eleven matrices in float32, beside the masks."""

_HESSIAN_BYTES = 40
"""Per pair of inputs, where rounding is fed back: the Hessian in float64, its factors, and what it is made of."""

_PLACED_BYTES = 64
"""Per block and task, while blocks are chosen and packed."""

_WRITTEN_BYTES = 8
"""Per element of a parameter that stays in memory, while it is written: bfloat16 three times, and a spare."""

_STRETCH = 64 << 20
"""Bytes of pages that are made together at least, where there are so many."""


@dataclass(frozen=True)
class Stages:
    """The stages of a compile.

    Attributes:
        source: the dense model.
        reorders: whether it will be reordered.
        adds: whether tasks are added to a bundle, in a copy of the model.
        on_disk: whether the model lies in the scratch.
        calibration_bytes: bytes that sums of one task's calibration may take while they grow.
    """

    source: DenseModel
    reorders: bool
    adds: bool
    on_disk: bool
    calibration_bytes: int

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes of each stage, by its name in the report."""
        found = dict(self._own())
        sparse = self._held(self.source.paged_bytes) if self.source.task_file.recover.refits else 0
        sparse += self._model if self.adds else 0
        later = {"controls", "pack", "write", "measure sparse"}
        return {name: self._model + own + (sparse if name in later else 0) for name, own in found.items()}

    def _own(self) -> Iterator[tuple[str, int]]:
        """Bytes of each stage beside the model and what recovery has found."""
        source, file = self.source, self.source.task_file
        paged, answers = source.paged_bytes, self._most(answer_bytes, EVAL_BATCH)
        few = self._most(answer_bytes, _FEW)
        caches = max(key_value_bytes(source, task, EVAL_BATCH) for task in source.models)
        yield "load", self._largest
        yield "measure dense", caches + answers + self._most(forward_bytes, EVAL_BATCH)
        waiting = self._held(len(source.models) * paged) if self.reorders else 0
        yield "calibrate", max(0, waiting - paged) + self.calibration_bytes + self.gradients
        if self.reorders:
            yield "reorder", waiting + max(self._reordered, self._largest, 2 * few + self._held(4 * few))
        placed = _PLACED_BYTES * len(source.models) * sum(info.grid.count for info in source.paged)
        yield "floors", self._held(paged) + self._widest + placed + 2 * few
        tried = file.accuracy_loss is not None
        yield "align", placed + (self._held(paged) + self._widest + answers if tried else 0)
        yield "recover", self._refit if file.recover.refits else 0
        if file.compare != "none":
            tables = self._largest + self._held(paged)
            yield "controls", tables + 2 * max(self._largest, self._widest) + caches + answers
        yield "pack", placed
        yield "write", max(self._written, self._pages)
        yield "measure sparse", self._bundle + caches + answers + self._most(forward_bytes, EVAL_BATCH)

    @cached_property
    def gradients(self) -> int:
        """What calibration takes beside sums: activations, a gradient and its square, and weights in bfloat16."""
        narrow = self.source.parameter_bytes // 2 if multiplies_in_bfloat16(training_device()) else 0
        return self._most(activation_bytes, self.source.task_file.calibration.batch) + 2 * self._widest + narrow

    @property
    def _model(self) -> int:
        return self._held(self.source.parameter_bytes)

    def _held(self, size: int) -> int:
        return 0 if self.on_disk else size

    @cached_property
    def _widest(self) -> int:
        """The largest paged weight."""
        return max(4 * info.elements for info in self.source.paged)

    @cached_property
    def _largest(self) -> int:
        """The largest parameter of all."""
        models = self.source.models.values()
        return max(4 * tensor.numel() for model in models for tensor in parameters(model).values())

    def _most(self, of_batch: Callable[[DenseModel, str, int], int], batch: int) -> int:
        file = self.source.task_file

        def items(task: str) -> int:
            return at_once(batch, file.max_length_of(task), file.tasks[task].kind)

        return max(of_batch(self.source, task, items(task)) for task in self.source.models)

    @cached_property
    def _reordered(self) -> int:
        assigned = (_ASSIGNED_BYTES * d.groups * d.units**2 for d in dimensions(self.source.models))
        return max((_MOVED_BYTES // 4 * self._widest, *assigned))  # a model may have no dimensions to reorder

    @cached_property
    def _refit(self) -> int:
        """Least squares: of each task two streams of hidden states and two moments; the solution of one weight."""
        source, file, tasks = self.source, self.source.task_file, len(self.source.models)
        widest = max(info.grid.in_features for info in source.paged)
        layer = max(
            sum(4 * info.elements for info in source.paged if info.layer == number)
            for number in {info.layer for info in source.paged}
        )
        hidden = int(getattr(source.config, "hidden_size", 0) or 0)
        length = max(map(file.max_length_of, source.models))
        tokens = min(tokens_wanted(source) + length, file.calibration.items * length)
        pairs = widest**2
        solved = _SOLVED_BYTES // 4 * self._widest + tasks * self._widest
        fed_back = _HESSIAN_BYTES * pairs + 4 * self._widest if file.dtype in ROUNDED else 0
        running = 2 * layer + 8 * pairs + self._most(forward_bytes, file.calibration.batch)
        held = self._held(source.paged_bytes + 2 * tasks * (4 * hidden * tokens + 4 * pairs))
        return held + max(solved, fed_back, running)

    @cached_property
    def _resident(self) -> int:
        """Elements of parameters that aren't paged, in any task."""
        paged = {f"{info.name}.weight" for info in self.source.paged}
        tensors = {
            id(tensor): tensor.numel()
            for model in self.source.models.values()
            for name, tensor in parameters(model).items()
            if name not in paged
        }
        return sum(tensors.values())

    @cached_property
    def _written(self) -> int:
        return _WRITTEN_BYTES * self._resident + self._largest

    @cached_property
    def _stored(self) -> int:
        """Bytes of all blocks that some task keeps, at most."""
        file, blocks = self.source.task_file, sum(info.grid.count for info in self.source.paged)
        kept = sum(1 - file.sparsity_of(task) for task in self.source.models)
        return round(min(1.0, kept) * blocks * block_bytes(file.block, file.dtype))

    @cached_property
    def _pages(self) -> int:
        layers = max(info.layer for info in self.source.paged) + 1
        return 2 * min(self._stored, max(_STRETCH, self._stored // layers)) + 3 * self._widest

    @cached_property
    def _bundle(self) -> int:
        """The bundle as an engine holds it."""
        return self._stored + 4 * self._resident
