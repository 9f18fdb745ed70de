"""How much memory a compile will need beyond the model, told before hours are spent."""

from __future__ import annotations

from pathlib import Path

from weightpager.compiler.named_parameters import parameters
from weightpager.compiler.source import Source
from weightpager.errors import CompileError

_V2 = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"))
_V1 = (
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
    Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
_MEMINFO = Path("/proc/meminfo")

_HIDDEN_BYTES = 34
"""Activations kept for the backward pass, per token, layer and hidden unit, in 16 bits (Korthikanti et al. 2022,
"Reducing activation recomputation in large transformer models", equation 1)."""

_SCORE_BYTES = 5
"""The same per pair of tokens, layer and attention head."""

_LOGIT_BYTES = 12
"""Logits in float32, their softmax and their gradient, per class or word."""


def available_bytes() -> int | None:
    """Memory that this process may still take: the least of what the system has and its cgroup allows; None if unknown.

    A cgroup's page cache counts as free: it is given back when memory is short.
    """
    known = [size for size in (_mem_available(), _cgroup_left(*_V2), _cgroup_left(*_V1)) if size is not None]
    return min(known, default=None)


def training_bytes(source: Source, batch: int, copies: int) -> int:
    """A rough upper estimate of what gradient steps take: gradients, two Adam moments, activations of one batch.

    Args:
        source: the dense model, which is in memory already.
        batch: texts in a batch.
        copies: of the model beside it.
    """
    tensors = {id(t): t for task in source.models for t in parameters(source.models[task]).values()}
    weights = sum(4 * tensor.numel() for tensor in tensors.values())
    return weights * (3 + copies) + max(activation_bytes(source, task, batch) for task in source.models)


def activation_bytes(source: Source, task: str, batch: int) -> int:
    """What the backward pass of one batch of a task's longest texts needs."""
    config, length = source.config, source.task_file.max_length_of(task)
    hidden = int(getattr(config, "hidden_size", 0))
    layers, heads = (int(getattr(config, key, 0)) for key in ("num_hidden_layers", "num_attention_heads"))
    labels, per_token = len(source.classes(task)), source.task_file.tasks[task].kind != "text-classification"
    logits = (labels or int(getattr(config, "vocab_size", 0))) * _LOGIT_BYTES * (length if per_token else 1)
    return batch * (length * layers * (_HIDDEN_BYTES * hidden + _SCORE_BYTES * heads * length) + logits)


def check_memory(source: Source, available: int | None) -> None:
    """Refuse a compile whose training can't fit.

    Args:
        source: the dense model.
        available: bytes, see `available_bytes`; None checks nothing.

    Raises:
        CompileError: a stage needs more.
    """
    file = source.task_file
    if available is None:
        return
    if any(task.trained for task in file.tasks.values()):
        _check("training", file.training.batch, training_bytes(source, file.training.batch, copies=0), available)
    if file.recover.method == "finetune":
        _check("recover", file.recover.batch, training_bytes(source, file.recover.batch, copies=1), available)
    if file.saliency == "gradient":
        needed = max(activation_bytes(source, task, file.calibration.batch) for task in file.tasks)
        _check("calibration", file.calibration.batch, needed, available)


def _check(section: str, batch: int, needed: int, available: int) -> None:
    if needed > available:
        mib = 1 << 20
        raise CompileError(
            f"{section}.batch: expected what fits into the {available // mib} MiB of free memory, found {batch} texts, "
            f"which need about {-(-needed // mib)} MiB; take a smaller batch or max_length"
        )


def _mem_available() -> int | None:
    if not _MEMINFO.is_file():
        return None
    lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines() if ":" in line)
    return int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else None


def _cgroup_left(limit: Path, usage: Path) -> int | None:
    if not limit.is_file() or not usage.is_file():
        return None
    most, used = limit.read_text().strip(), int(usage.read_text())
    if most == "max":
        return None
    return max(0, int(most) - used + _reclaimable(usage.parent / "memory.stat"))


def _reclaimable(stat: Path) -> int:
    """Page cache of a cgroup, which it gives back when memory is short."""
    if not stat.is_file():
        return 0
    facts = dict(line.split(" ", 1) for line in stat.read_text().splitlines())
    files = [int(facts[key]) for key in ("inactive_file", "active_file") if key in facts]
    return sum(files)
