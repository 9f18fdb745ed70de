"""How much memory a compile will need beyond the model, told before hours are spent."""

from __future__ import annotations

from transformers import PretrainedConfig

from weightpager.compiler.named_parameters import parameters
from weightpager.compiler.source import Source
from weightpager.errors import CompileError

_HIDDEN_BYTES = 34
"""Activations kept for the backward pass, per token, layer and hidden unit, in 16 bits (Korthikanti et al. 2022,
"Reducing activation recomputation in large transformer models", equation 1)."""

_SCORE_BYTES = 5
"""The same per pair of tokens, layer and attention head."""

_LOGIT_BYTES = 12
"""Logits in float32, their softmax and their gradient, per class or word."""


def training_bytes(source: Source, batch: int, copies: int) -> int:
    """A rough upper estimate of what gradient steps take: gradients, two Adam moments, activations of one batch.

    Args:
        source: the dense model, which is in memory already.
        batch: texts or images in a batch.
        copies: of the model beside it.
    """
    tensors = {id(t): t for task in source.models for t in parameters(source.models[task]).values()}
    weights = sum(4 * tensor.numel() for tensor in tensors.values())
    return weights * (3 + copies) + max(activation_bytes(source, task, batch) for task in source.models)


def activation_bytes(source: Source, task: str, batch: int) -> int:
    """What the backward pass of one batch of a task's longest texts, or of its images, needs."""
    config, spec = source.config, source.task_file.tasks[task]
    length = _patches(config) if spec.takes_images else source.task_file.max_length_of(task)
    hidden = int(getattr(config, "hidden_size", 0))
    layers, heads = (int(getattr(config, key, 0)) for key in ("num_hidden_layers", "num_attention_heads"))
    labels, per_token = len(source.classes(task)), spec.kind in ("token-classification", "language-modeling")
    logits = (labels or int(getattr(config, "vocab_size", 0))) * _LOGIT_BYTES * (length if per_token else 1)
    return batch * (length * layers * (_HIDDEN_BYTES * hidden + _SCORE_BYTES * heads * length) + logits)


def _patches(config: PretrainedConfig) -> int:
    """Of an image, and one more for its class; 1 where the configuration doesn't tell, as nothing better is known."""
    size, patch = (getattr(config, key, None) for key in ("image_size", "patch_size"))
    return (size // patch) ** 2 + 1 if isinstance(size, int) and isinstance(patch, int) and patch > 0 else 1


def check_memory(source: Source, available: int | None) -> None:
    """Refuse a compile whose training can't fit.

    Args:
        source: the dense model.
        available: bytes; None checks nothing.

    Raises:
        CompileError: a stage needs more.
    """
    file = source.task_file
    if available is None:
        return
    items = "images" if file.takes_images else "texts"
    if any(task.trained for task in file.tasks.values()):
        batch = file.training.batch
        _check("training", f"{batch} {items}", training_bytes(source, batch, copies=0), available)
    if file.recover.method == "finetune":
        batch = file.recover.batch
        _check("recover", f"{batch} {items}", training_bytes(source, batch, copies=1), available)
    if file.saliency == "gradient":
        batch = file.calibration.batch
        _check(
            "calibration", f"{batch} {items}", max(activation_bytes(source, t, batch) for t in file.tasks), available
        )


def _check(section: str, found: str, needed: int, available: int) -> None:
    if needed > available:
        mib = 1 << 20
        advice = "take a smaller batch" if found.endswith("images") else "take a smaller batch or max_length"
        raise CompileError(
            f"{section}.batch: expected what fits into the {available // mib} MiB of free memory, found {found}, "
            f"which need about {-(-needed // mib)} MiB; {advice}"
        )
