"""A task's low-rank parts as llama.cpp's LoRA file, to lay over the dense model that was compiled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from weightpager.backends.torch.architecture import BASE, read_config
from weightpager.backends.torch.export import free_target, refusals
from weightpager.bundle import Bundle
from weightpager.bundle.files.new_directory import scratch, sync
from weightpager.bundle.files.tensor_file import read_header
from weightpager.bundle.format.low_rank import Float32, LowRank
from weightpager.bundle.format.names import private_file
from weightpager.errors import ConfigError, shown
from weightpager.store.block_reader import read_low_rank

SUFFIX = ".gguf"

_ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma": "gemma", "gemma2": "gemma2",
    "phi3": "phi3",
}  # fmt: skip
"""llama.cpp's name by transformers' type of model: those whose linear layers both have alike, but for rows' order."""

_NAMED = 3
"""Parameters that an error names at most."""


def export_lora(bundle: Bundle, task: str, out: str | Path) -> Path:
    """Write a task's low-rank parts as llama.cpp reads them, in float32: what the engine multiplies with.

    Rows and columns are in the order of the model that was compiled, and queries' and keys' rows as llama.cpp has them.
    The scaling is folded in: ``adapter.lora.alpha`` is the largest rank.

    Raises:
        UnknownTaskError: the bundle has no such task.
        ConfigError: ``out`` exists already, or cannot be written; the task has no low-rank part, or differs from the
            model that was compiled in anything else; llama.cpp's form of the model isn't known; or the package
            ``gguf`` isn't installed.
        BundleError: a page or file is damaged.
    """
    bundle.task(task)
    target = free_target(out)
    config = read_config(bundle)
    if config.model_type not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise ConfigError(f"out: expected a model like {known} for a GGUF file, found {shown(config.model_type)}")
    _check(bundle, task)
    parts = dict(_in_original_order(bundle, task))
    with scratch(target.parent, f".{target.name}.tmp-") as folder, refusals(target):
        written = folder / target.name
        _write(written, config, task, parts)
        sync(written)
        written.rename(target)
        sync(target.parent)
    return target


def _check(bundle: Bundle, task: str) -> None:
    """Refuse a task that low-rank parts don't tell all of."""
    if bundle.low_rank(task) is None:
        raise ConfigError(
            f"out: a GGUF file holds a task's low-rank parts, and {task} has none; name a directory for the whole model"
        )
    if beside := [*_beside(bundle, task)]:
        raise ConfigError(
            f"out: a GGUF file holds a task's low-rank parts alone, and {task} has beside them "
            f"{'; '.join(beside)}. Name a directory for the whole model"
        )


def _beside(bundle: Bundle, task: str) -> Iterator[str]:
    """What a task differs in from the model that was compiled, as far as the bundle tells, but for low-rank parts."""
    entry, number, placement = bundle.task(task), bundle.task_numbers[task], bundle.placement
    if not entry.writes:
        yield f"a head for {entry.kind}"
    if names := sorted(read_header(bundle.path, private_file(task), bundle.entry(private_file(task)))):
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        yield f"values of its own for {', '.join(names[:_NAMED])}{more}"
    blocks = sum(bundle.manifest.grid(weight).count for weight in bundle.manifest.weights)
    if dropped := blocks - placement.kept(number):
        yield f"{dropped:,} of {blocks:,} blocks dropped"
    used = np.flatnonzero(placement.users())
    numbers, places = np.unique(placement.numbers_at(used), return_counts=True)
    own = np.isin(placement.numbers_at(bundle.kept_locations(task)), numbers[places > 1])
    if own.any():
        yield f"{np.count_nonzero(own):,} blocks whose values differ among tasks"


def _in_original_order(bundle: Bundle, task: str) -> Iterator[tuple[str, LowRank]]:
    """The task's parts, by the weight's name, with the compiler's reordering undone."""
    back = bundle.permutations().inverse()
    for name, part in read_low_rank(bundle, task).items():
        moved = back.of(task, f"{name}.weight")
        yield name, LowRank(part.down[:, moved.get(1, slice(None))], part.up[moved.get(0, slice(None))])


def _write(out: Path, config: Any, task: str, parts: Mapping[str, LowRank]) -> None:
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise ConfigError("out: expected the package 'gguf' to write a GGUF file, found none; install it") from error
    architecture, rank = _ARCHITECTURES[config.model_type], max(len(part.down) for part in parts.values())
    names: Any = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    writer: Any = gguf.GGUFWriter(out, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(task)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
    for name, part in parts.items():
        called = names.get_name(f"model.{name.removeprefix(BASE)}")
        if called is None:
            raise ConfigError(f"out: expected a weight that llama.cpp has for {architecture}, found {name}")
        up = part.up * np.float32(len(part.down) / rank)  # llama.cpp divides by the part's own rank
        up = _with_pairs_together(up, config, name) if architecture == "llama" else up
        writer.add_tensor(f"{called}.weight.lora_a", np.ascontiguousarray(part.down))
        writer.add_tensor(f"{called}.weight.lora_b", np.ascontiguousarray(up))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _with_pairs_together(up: Float32, config: Any, name: str) -> Float32:
    """Rows of queries and keys as llama.cpp has them: it turns neighbours, transformers the halves of each head."""
    counts = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    setting = counts.get(name.rpartition(".")[2])
    if setting is None:
        return up
    heads, (rows, rank) = getattr(config, setting), up.shape
    return np.asarray(up.reshape(heads, 2, rows // heads // 2, rank).swapaxes(1, 2).reshape(rows, rank))
