"""How much memory a compile will need beyond the model, told before hours are spent."""

from __future__ import annotations

from transformers import PretrainedConfig

from weightpager.bundle.format.manifest import FORMS
from weightpager.compiler.model.dense_model import Source
from weightpager.compiler.reorder.dimensions import dimensions
from weightpager.compiler.task_file.file import TaskFile
from weightpager.compiler.training.attention import SHORT
from weightpager.compiler.training.device import multiplies_in_bfloat16, training_device
from weightpager.errors import CompileError
from weightpager.machine.memory import read_memory
from weightpager.task_data.batches import at_once

_HIDDEN_BYTES = {False: 54, True: 43}
"""What a backward pass takes, per token, layer and hidden unit: in float32, and where matrices multiply in bfloat16.
These and the next ones were measured on Llama's layers (decision 10); BERT's take two thirds of it. Attention of short
texts keeps 11 more, as it is in float32: so they take as much as all of a layer in float32."""

_NEURON_BYTES = {False: 16, True: 8}
"""The same, per token, layer and neuron of the feed-forward part."""

_NEURONS = 4
"""Neurons of the feed-forward part for each hidden unit, where the configuration doesn't tell."""

_SCORE_BYTES = 5
"""The same, per pair of tokens, layer and attention head, where attention is computed step by step."""

_LOGIT_BYTES = 12
"""Logits in float32, their softmax and their gradient, per class or word."""

_ELEMENT_BYTES = 12
"""Copies of one weight's elements, in float32, while saliency is made of them."""

_ASSIGNED_BYTES = 12
"""Per unit and place of a dimension whose units are assigned: three matrices in float32."""

_GRADIENT_AND_MOMENTS = 3
"""Copies of what is trained: its gradient, and Adam's two moments."""


def training_bytes(source: Source, batch: int, copies: int) -> int:
    """A rough upper estimate of what gradient steps take: gradients, two Adam moments, activations of one batch.

    Args:
        source: the dense model, which is in memory already.
        batch: texts or images in a batch.
        copies: of the model beside it.
    """
    return source.parameter_bytes * (_GRADIENT_AND_MOMENTS + copies) + _most_activations(source, batch)


def recover_bytes(source: Source) -> int:
    """What ``finetune`` takes: the sparse model, its best values so far, and paged weights under their masks.

    If controls are trained, the sparse model stays in memory meanwhile.
    """
    spec = source.task_file.recover
    best, waiting = 1 if spec.patience else 0, 0 if source.task_file.compare == "none" else 1
    needed = training_bytes(source, spec.batch, copies=1 + best + waiting) + source.paged_bytes
    return max(needed, private_bytes(source)) if spec.trains_alone else needed


def private_bytes(source: Source) -> int:
    """What the training of one task alone takes: all that ``finetune`` does for tasks that are added to a bundle.

    Private blocks are trained in copies of a task's weights: what moves, what doesn't, and both together.
    """
    spec = source.task_file.recover
    copies = 3 + _GRADIENT_AND_MOMENTS + (1 if spec.patience else 0)
    return source.parameter_bytes + copies * source.paged_bytes + _most_activations(source, spec.batch)


def own_bytes(source: Source) -> int:
    """What the training of heads and vectors takes: all that added tasks train, on frozen weights.

    Unless they are fine-tuned, they are trained again in a copy of the model, under each task's masks.
    """
    file = source.task_file
    needed = _most_activations(source, file.training.batch)
    if file.recover.method == "finetune":
        return needed
    return needed + source.parameter_bytes + len(file.trained_tasks) * source.paged_bytes


def _most_activations(source: Source, batch: int) -> int:
    return max(activation_bytes(source, task, batch) for task in source.models)


def activation_bytes(source: Source, task: str, batch: int) -> int:
    """What the backward pass of one batch of a task's longest texts, or of its images, needs."""
    config, spec = source.models[task].config, source.task_file.tasks[task]
    length = _patches(source, config) if spec.takes_images else source.task_file.max_length_of(task)
    hidden, layers, heads = (_most(config, key) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    labels, per_token = len(source.classes(task)), FORMS[spec.kind].labels in ("each word", "none")
    logits = (labels or int(getattr(config, "vocab_size", 0))) * _LOGIT_BYTES * (length if per_token else 1)
    neurons, low = _most(config, "intermediate_size") or _NEURONS * hidden, multiplies_in_bfloat16(training_device())
    scores = _SCORE_BYTES * heads * length if config._attn_implementation == "eager" else 0
    short = length <= SHORT and not spec.takes_images
    kept = _HIDDEN_BYTES[low and not short] * hidden + _NEURON_BYTES[low] * neurons + scores  # per token and layer
    return batch * (length * layers * kept + logits)


def _most(config: PretrainedConfig, key: str) -> int:
    """A number of the configuration; the largest where stages differ, 0 where it doesn't tell."""
    found = getattr(config, key, None) or 0  # GPT-Neo has None
    return max(found, default=0) if isinstance(found, (list, tuple)) else int(found)


def _patches(source: Source, config: PretrainedConfig) -> int:
    """Of an image, and one more for its class; 1 where the configuration doesn't tell, as nothing better is known."""
    shape, patch = source.images.shape if source.images else None, getattr(config, "patch_size", None)
    if shape is None or not isinstance(patch, int) or patch <= 0:
        return 1
    _, height, width = shape
    return (height // patch) * (width // patch) + 1


def saliency_bytes(source: Source, *, moves: bool) -> int:
    """What saliency takes at its most, beside the model and a batch's activations.

    Reordering needs the sums of all tasks at once; else one task's are held at a time. As much as one task's is taken
    again while these are measured, and while they are moved.

    Args:
        source: the dense model.
        moves: whether it will be reordered.
    """
    sums = source.paged_bytes  # of one task
    work = max(_ELEMENT_BYTES * info.grid.out_features * info.grid.in_features for info in source.paged)
    assigned = max((_ASSIGNED_BYTES * d.groups * d.units**2 for d in dimensions(source.models)), default=0)
    held = len(source.models) if moves else 1
    return held * sums + max(sums + work, assigned if moves else 0)


def check_memory(source: Source, *, adds: bool, moves: bool) -> None:
    """Refuse a compile that can't fit into the memory that is free; a GPU's isn't known.

    Args:
        source: the dense model.
        adds: whether tasks are added to a bundle, whose values stay.
        moves: whether the model will be reordered.

    Raises:
        CompileError: a stage needs more.
    """
    available = read_memory().usable_bytes
    if training_device().type == "cpu":
        check_training(source, available, adds=adds)
    check_saliency(source, available, moves=moves)


def check_training(source: Source, available: int | None, *, adds: bool = False) -> None:
    """Refuse a compile whose training can't fit.

    Args:
        source: the dense model.
        available: bytes; None checks nothing.
        adds: whether tasks are added to a bundle, whose values stay.

    Raises:
        CompileError: a stage needs more.
    """
    file = source.task_file
    if file.trained_tasks:
        needed = own_bytes(source) if adds else training_bytes(source, file.training.batch, copies=0)
        _check_batch(file, "training", file.training.batch, needed, available)
    if file.recover.method == "finetune":
        needed = private_bytes(source) if adds else recover_bytes(source)
        _check_batch(file, "recover", file.recover.batch, needed, available)


def check_saliency(source: Source, available: int | None, *, moves: bool) -> None:
    """Refuse a compile whose saliency can't fit.

    Args:
        source: the dense model.
        available: bytes; None checks nothing.
        moves: whether the model will be reordered.

    Raises:
        CompileError: it needs more.
    """
    file = source.task_file
    needed = saliency_bytes(source, moves=moves)
    found = f"{file.saliency} of {len(file.tasks)} tasks at once" if moves else f"{file.saliency} of one task at a time"
    advice = "set reorder: false" if moves else "take a smaller model"
    _check("saliency", f"{found}, which takes", needed, available, advice)
    needed += max(activation_bytes(source, name, _calibrated_at_once(file, name)) for name in file.tasks)
    _check_batch(file, "calibration", file.calibration.batch, needed, available)


def _calibrated_at_once(file: TaskFile, name: str) -> int:
    return at_once(file.calibration.batch, file.max_length_of(name), file.tasks[name].kind)


def _check_batch(file: TaskFile, section: str, batch: int, needed: int, available: int | None) -> None:
    items, advice = ("images", "") if file.takes_images else ("texts", " or max_length")
    found = f"{batch} {items}, which need"
    _check(f"{section}.batch", found, needed, available, f"take a smaller batch{advice}")


def _check(key: str, found: str, needed: int, available: int | None, advice: str) -> None:
    if available is not None and needed > available:
        mib = 1 << 20
        raise CompileError(
            f"{key}: expected what fits into the {available // mib} MiB of free memory, "
            f"found {found} about {-(-needed // mib)} MiB; {advice}"
        )
