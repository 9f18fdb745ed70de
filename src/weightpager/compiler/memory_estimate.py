"""The most memory that each stage of a compile takes, and a refusal where that isn't there, before hours are spent.

It is a bound, not a model of the compiler: what a stage holds at once is counted in whole copies of the weights, and
what a batch of the longest texts leaves for a backward pass by the widths of the layers that it passes. A test holds
compiles of every method and kind against it.

Where the model lies in the scratch, so does what is as large as the model: that is page cache, which is given up where
memory is short, and counts as nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from weightpager.answers.batches import CACHED_TOKENS
from weightpager.backends.torch.architecture import context_length
from weightpager.backends.torch.generation import bytes_per_token
from weightpager.bundle.format.manifest import FORMS, PatchRuns
from weightpager.compiler.controls import shares_mask
from weightpager.compiler.data import NEW_TOKENS
from weightpager.compiler.model.checkpoint import IN_MEMORY, Scratch
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.model.paged_weights import parameters
from weightpager.compiler.recovery.closed_form import tokens_wanted
from weightpager.compiler.recovery.least_squares import BYTES_AT_ONCE
from weightpager.compiler.selection.trial_plan import candidate_names, tries_sparsities
from weightpager.compiler.training.device import training_device
from weightpager.compiler.training.early_stopping import ITEMS
from weightpager.errors import CompileError
from weightpager.nn.experts import mixtures
from weightpager.page_dtype import block_bytes
from weightpager.task_data.batches import EVAL_BATCH, at_once

_LATER = 384 << 20
"""Packages that are imported, threads that are started and buffers that libraries keep after a model is loaded."""

_SAVED = 8
"""Bytes that a backward pass keeps per token and each input and output of a linear layer: float32, and as much again
for norms, activations and attention."""

_PASSING = 64
"""Bytes that a layer takes per token and input of its widest weight: sixteen numbers in float32."""

_SCORES = 8
"""Bytes that a backward pass keeps per pair of tokens and head, where attention is computed step by step."""

_LEARNT, _MEASURED = 5, 4
"""Copies of logits in float32: of a batch that is learnt from, with a teacher's; of one text that is measured."""

_ADAM = 3
"""Copies of what is trained: its gradient, and Adam's two moments."""

_SOLVED, _PAIRS = 12, 48
"""Copies of the widest weight while least squares refit a layer, and bytes for each pair of its inputs."""

_PLACED = 64
"""Bytes per block and task, while blocks are chosen and packed."""

_PASSES = 8
"""Most passes over the data of a calibration whose sums don't fit into memory together."""

_PATCH = 4
"""Pixels along a side of a patch of an image, where the configuration doesn't tell."""

_SMALLER = "take a smaller model"
_ADVICE = {
    "train": f"{_SMALLER}, or tasks that bring a head",
    "measure dense": "take a smaller calibration.max_length",
    "reorder": "set reorder: false",
    "controls": "set compare: none",
    "recover": "set recover: none",
}


@dataclass(frozen=True)
class Bound:
    """What a compile will take.

    Attributes:
        stages: most bytes of each stage beside what the process held before, the model's included where it is in
            memory.
        on_disk: bytes of what lies in the scratch and comes and goes as memory allows; 0 if all is in memory.
        calibration_bytes: bytes that sums of calibration may take while they grow.
    """

    stages: Mapping[str, int]
    on_disk: int
    calibration_bytes: int

    @property
    def most(self) -> tuple[str, int]:
        """The stage that takes most, and what it takes."""
        return max(self.stages.items(), key=lambda item: item[1])


def bound(source: DenseModel, available: int | None, *, reorders: bool, on_disk: bool, adds: bool = False) -> Bound:
    """What a compile will take, of ``available`` bytes, the model's included where that is in memory; None if unknown.

    ``on_disk`` says whether the model lies in the scratch, ``adds`` whether tasks are added to a bundle.
    """
    stages, sums = _Stages(source, reorders, adds, on_disk), source.paged_bytes
    if on_disk and available is not None:
        sums = _room(sums, available - _LATER - stages.calibrating)
    each = {name: _LATER + size for name, size in stages.each(sums)}
    held = source.parameter_bytes + (len(source.models) + source.task_file.recover.refits) * source.paged_bytes
    return Bound(each, held if on_disk else 0, sums)


def choose_scratch(source: DenseModel, folder: Path | None, available: int | None, *, reorders: bool) -> Scratch:
    """Where a compile holds its model: in memory, unless it doesn't fit there and nothing is trained.

    The model's values aren't in memory yet. ``folder`` is for files; None if there may be none.
    """
    file = source.task_file
    if folder is None or available is None or file.trained_tasks or file.recover.method == "finetune":
        return IN_MEMORY
    fits = bound(source, available, reorders=reorders, on_disk=False).most[1] <= available
    return IN_MEMORY if fits else Scratch(folder)


def check_memory(source: DenseModel, available: int | None, *, reorders: bool, adds: bool = False) -> Bound:
    """What a compile will take, see `bound`; refuse one of which some stage can't fit. A GPU's memory isn't known.

    The model's values are where they will be.
    """

    def bound_of(other: DenseModel) -> Bound:
        return bound(other, available, reorders=reorders, on_disk=source.scratch.folder is not None, adds=adds)

    def with_one(section: str) -> DenseModel:
        spec = getattr(source.task_file, section).model_copy(update={"batch": 1})
        return replace(source, task_file=source.task_file.model_copy(update={section: spec}))

    found, mib = bound_of(source), 1 << 20
    for stage, size in found.stages.items():
        if available is None or size <= available:
            continue
        advice = _ADVICE.get(stage, _SMALLER)
        section = {"train": "training", "calibrate": "calibration", "recover": "recover"}.get(stage)
        if section and bound_of(with_one(section)).stages[stage] <= available:
            advice = f"take a smaller {section}.batch" + ("" if source.task_file.takes_images else " or max_length")
        raise CompileError(
            f"memory: expected what fits into the {available // mib} MiB of free memory, found the stage {stage!r}, "
            f"which takes about {-(-size // mib)} MiB; {advice}"
        )
    return found


def _room(sums: int, left: int) -> int:
    """Bytes for sums that grow in one pass, of ``left`` for them and the model on disk.

    The model has the other half: what must be read again for every batch takes longer than another pass.
    """
    return min(sums, max(sums // _PASSES, left // 2))


class _Stages:
    """The stages of a compile, and what each holds at once."""

    def __init__(self, source: DenseModel, reorders: bool, adds: bool, on_disk: bool) -> None:
        self.source, self.reorders, self.adds, self.on_disk = source, reorders, adds, on_disk
        grids, models = [info.grid for info in source.paged], source.models.values()
        self._paged, self._widest = source.paged_bytes, max(4 * info.elements for info in source.paged)
        self._width = max(max(grid.in_features, grid.out_features) for grid in grids)
        self._largest = max(4 * tensor.numel() for model in models for tensor in parameters(model).values())
        shape = source.images.shape if source.images else None
        self._pixels = shape or (0, 0, 0)  # of an image; zeros of texts, and where it isn't known

    def each(self, sums: int) -> Iterator[tuple[str, int]]:
        """Bytes of each stage, by its name in the report; ``sums`` are those that one task's calibration may grow."""
        file, whole, tasks = self.source.task_file, self.source.parameter_bytes, len(self.source.models)
        model, paged = self._held(whole), self._held(self._paged)
        resident, measured, blocks = whole - self._paged, self._measured, sum(i.grid.count for i in self.source.paged)
        copies = tasks if self.source.versions else 1 + tasks * file.recover.private_blocks
        placed, stored = _PLACED * tasks * blocks, round(copies * blocks * block_bytes(file.block, file.dtype))
        written = max(2 * stored + 3 * self._widest, 2 * resident + self._largest)
        trial = 0 if file.fit is None else whole + written
        yield "load", 2 * model + self._largest + trial
        if file.trained_tasks:
            yield "train", model + self._trained(resident if self.adds else whole, file.training.batch)
        if file.has_data:
            yield "measure dense", model + measured
            yield "calibrate", model + self.reorders * (tasks - 1) * paged + sums + self.calibrating
        if self.reorders:
            yield "reorder", model + tasks * paged + max(12 * self._width**2, 3 * self._largest) + 2 * measured
        if file.has_data:
            yield "floors", model + paged + placed + measured
        yield "align", model + paged + placed + measured + trial
        if candidate_names(file) or tries_sparsities(file):
            yield "try", model + self._recovering + paged + max(placed + measured, whole + written)
        yield "recover", model + self._recovering
        if file.has_data and file.compare != "none":
            yield "controls", model + self._recovered + self._compared + measured
        yield "pack", model + self._recovered + placed
        yield "write", model + self._recovered + written
        yield "measure sparse", model + self._recovered + stored + resident + measured

    @cached_property
    def calibrating(self) -> int:
        """What calibration takes beside the model and sums: a batch, a gradient and its square."""
        return self._learning(self.source.task_file.calibration.batch) + 2 * self._widest

    @cached_property
    def _recovering(self) -> int:
        """What recovery takes beside the dense model."""
        file, whole = self.source.task_file, self.source.parameter_bytes
        if file.recover.method == "finetune":  # under masks, as pages round it; alone, what stays and what moves, too
            masked = (4 if self.adds or file.recover.trains_alone else 2) * self._paged
            refit = self._refitting if file.recover.refits else 0
            return self._recovered + max(refit, masked + self._checked())
        if self.adds:
            return self._recovered + self._paged + self._trained(whole - self._paged, file.training.batch)
        return self._refitting if file.recover.refits else 0

    @cached_property
    def _recovered(self) -> int:
        """What recovery has found, beside the dense model: another one, and each task's own values."""
        spec, paged = self.source.task_file.recover, self.source.paged
        if spec.method != "finetune" and not self.adds:
            return self._held(self._paged) if spec.refits else 0
        low_rank = 4 * spec.low_rank * sum(info.grid.out_features + info.grid.in_features for info in paged)
        own = round(spec.private_blocks * self._paged) + low_rank
        return self.source.parameter_bytes + len(self.source.models) * own

    @cached_property
    def _compared(self) -> int:
        """A control: a model whose weights are rounded, one shared mask's, or the dense one, if that is trained on."""
        file, whole = self.source.task_file, self.source.parameter_bytes
        rounded = self._held(self._paged) + 3 * self._largest
        shared = self._recovering if shares_mask(file, file.compare) else 0
        longer = whole + max(rounded, self._checked()) if file.recovery_steps else rounded
        return max(shared, longer)

    @cached_property
    def _refitting(self) -> int:
        """Least squares: of each task two streams of hidden states and two moments; what refits a layer."""
        file, tasks = self.source.task_file, len(self.source.models)
        length = max(map(self._length, self.source.models))
        tokens = min(tokens_wanted(self.source) + length, file.calibration.items * length)
        pictures = self.source.pictures  # a tower is refitted before the words' layers; its patches may be more
        held = tokens
        if pictures is not None:
            held *= max(1, math.ceil(self._patches / pictures.places)) if self._runs is None else self._runs.merge**2
        streams = 2 * tasks * 4 * (self._width * held + self._width**2)
        solved = _SOLVED * self._widest + _PAIRS * self._width**2 + BYTES_AT_ONCE
        return self._held(self._paged + streams) + solved + self._most(self._passing, file.calibration.batch)

    def _trained(self, size: int, batch: int) -> int:
        """What gradient steps take that train so many bytes: gradients, moments, and a batch."""
        if training_device().type != "cpu":
            return 0
        return _ADAM * size + self._learning(batch, cut=False)

    def _checked(self) -> int:
        """What recovery's gradient steps take, with early stopping: the best values so far, and a teacher's answers."""
        file, whole = self.source.task_file, self.source.parameter_bytes
        learning = self._trained(whole, file.recover.batch)
        if file.recover.patience == 0 or any(task.validation is None for task in file.tasks.values()):
            return learning
        return whole + max(learning, self._trained(whole, 0) + 2 * self._most(self._measuring, ITEMS // 2))

    def _learning(self, batch: int, *, cut: bool = True) -> int:
        """What a batch takes that is learnt from, with weights in bfloat16; ``cut`` if few long texts make a batch."""
        if training_device().type != "cpu":
            return 0
        return self.source.parameter_bytes // 2 + self._most(self._kept, batch, cut=cut)

    @cached_property
    def _measured(self) -> int:
        """What a batch takes that is measured, with weights in bfloat16."""
        return self.source.parameter_bytes // 2 + self._most(self._measuring, EVAL_BATCH)

    def _most(self, of_batch: Callable[[str, int], int], batch: int, *, cut: bool = True) -> int:
        kinds = {name: task.kind for name, task in self.source.task_file.tasks.items()}
        items = {task: at_once(batch, self._length(task), kinds[task]) if cut else batch for task in self.source.models}
        return max(of_batch(task, size) for task, size in items.items())

    def _kept(self, task: str, items: int) -> int:
        """What a task's longest items leave for the backward pass."""
        config = self.source.models[task].config
        scores = 0
        if config._attn_implementation == "eager":
            text = config.get_text_config()
            counts = (getattr(text, f"num_{key}", 0) or 0 for key in ("attention_heads", "hidden_layers"))
            scores = _SCORES * self._length(task) * math.prod(int(np.max(count)) for count in counts)
        token = _SAVED * self._passed + scores
        learnt = 4 * _LEARNT * self._logits(task)
        return items * (self._length(task) * token + self._looking(task) + learnt) + self._passing(task, items)

    def _measuring(self, task: str, items: int) -> int:
        """What a task's longest items take while they are measured: a layer, logits, and prompts' keys and values."""
        spec, model, length = self.source.task_file.tasks[task], self.source.models[task], self._length(task)
        answers = 4 * (items + _MEASURED) * self._logits(task)
        longest = min(length + (spec.max_new_tokens or NEW_TOKENS), context_length(model))
        cached = max(CACHED_TOKENS, longest) * bytes_per_token(model.config, itemsize=4) if spec.completes else 0
        return self._passing(task, items) + answers + cached

    def _passing(self, task: str, items: int) -> int:
        """What a task's longest items take of a layer that they pass, and as they came."""
        images = self._pictures(task) if self.source.pictures else 1
        # Of pictures and words, one after the other, the longer stretch is passed at once.
        tokens = max(self._length(task), self._pictures(task) * self._patches)
        return items * (_PASSING * tokens * self._width + 2 * 4 * images * self._numbers)

    @cached_property
    def _passed(self) -> int:
        """Inputs and outputs of all linear layers that a token passes."""
        first = next(iter(mixtures(next(iter(self.source.models.values())))), None)
        share = first.router.top_k / len(first.experts) if first else 1.0
        sides = ((info.name, info.grid.out_features + info.grid.in_features) for info in self.source.language)
        return math.ceil(sum(size * (share if ".experts." in name else 1.0) for name, size in sides))

    def _pictures(self, task: str) -> int:
        """Pictures in a task's longest text, or tiles, at most: it holds a placeholder for each feature."""
        pictures = self.source.pictures
        if pictures is None:
            return 0
        if pictures.packed is not None:  # what was padded takes no places
            return max(1, self._length(task) // (pictures.places - 1)) * pictures.packed.tiles
        return 1 if self._runs is not None else max(1, self._length(task) // pictures.places)

    @cached_property
    def _numbers(self) -> int:
        """Numbers that come of an image, or of all pictures of a text that are runs of patches."""
        if self._runs is None:
            return math.prod(self._pixels)
        vision = next(iter(self.source.models.values())).config.vision_config
        return int(self._patches * vision.in_channels * vision.temporal_patch_size * vision.patch_size**2)

    @property
    def _runs(self) -> PatchRuns | None:
        return None if self.source.pictures is None else self.source.pictures.runs

    @cached_property
    def _patches(self) -> int:
        """Patches of an image, and one more for its class; of runs those that a longest text has places for."""
        if self.source.pictures is not None and self._runs is not None:
            return min(self.source.pictures.tokens, max(map(self._length, self.source.models))) * self._runs.merge**2
        config = next(iter(self.source.models.values())).config
        stated = getattr(config.vision_config if self.source.pictures else config, "patch_size", None)
        patch = stated if isinstance(stated, int) and stated > 0 else _PATCH
        _, height, width = self._pixels
        return (height // patch) * (width // patch) + 1

    def _looking(self, task: str) -> int:
        """What a task's pictures leave in the tower for the backward pass, of one text."""
        passed = sum(info.grid.out_features + info.grid.in_features for info in self.source.tower)
        return _SAVED * passed * self._pictures(task) * self._patches

    def _length(self, task: str) -> int:
        """Tokens of a task's longest texts; patches of an image, and one more for its class."""
        if self.source.task_file.takes_images:
            return self._patches
        return self.source.task_file.max_length_of(task)

    def _logits(self, task: str) -> int:
        """How many numbers the head gives for a task's longest text, or for an image."""
        per_token = FORMS[self.source.task_file.tasks[task].kind].by_token
        words = getattr(self.source.models[task].config.get_text_config(), "vocab_size", 0)
        labels = len(self.source.classes(task)) or int(words)
        return labels * (self._length(task) if per_token else 1)

    def _held(self, size: int) -> int:
        return 0 if self.on_disk else size
