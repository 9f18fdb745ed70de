"""A task of a bundle as an ordinary dense-with-zeros transformers directory."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from weightpager.backends.task_parts import StoredMatrix
from weightpager.backends.torch.architecture import (
    BASE,
    empty_module,
    full_name,
    preprocessors,
    quiet_transformers,
    read_config,
    read_generation,
    set_generation,
)
from weightpager.backends.torch.parameters import activation_dtype, read_parameters, read_rows, widened
from weightpager.backends.torch.task_module import assign, route
from weightpager.bundle import Bundle, TaskEntry
from weightpager.bundle.files.new_directory import new_directory
from weightpager.bundle.format import placement as permutations_file
from weightpager.bundle.format.names import RESIDENT, private_file
from weightpager.bundle.model_files import model_dir
from weightpager.bundle.settings import PROCESSOR
from weightpager.errors import BundleFormatError, ConfigError
from weightpager.graph.dropped import without
from weightpager.kernels.torch import reference
from weightpager.machine.paths import has_directory
from weightpager.nn.experts import set_as_published
from weightpager.store import LocalStore, VerifyingStore
from weightpager.store.block_reader import read_low_rank


def free_target(out: str | Path) -> Path:
    """Where a directory shall be, as an absolute path.

    Raises:
        ConfigError: something is there already, or there is no directory to write it into.
    """
    target = Path(os.path.abspath(out))
    if os.path.lexists(target):
        raise ConfigError(f"out: {target} exists; choose another name")
    if not has_directory(target.parent):
        raise ConfigError(f"out: expected a directory to write into, but {target.parent} does not exist")
    return target


@contextmanager
def refusals(target: Path) -> Iterator[None]:
    """Turn what the storage refuses into a `ConfigError`."""
    try:
        yield
    except (OSError, SafetensorError, ValueError) as error:  # the last of settings that contradict each other
        raise ConfigError(f"out: cannot write {target}: {error}") from error


def export_task(
    bundle: Bundle, task: str, out: str | Path, left_out: Mapping[str, Sequence[int]] | None = None
) -> Path:
    """Write a task's model so that plain transformers loads it; dropped blocks are zeros, and low-rank parts are added.

    Layers that a task does without are left out, ``left_out`` or what `layers_left_out` says; other parts that it has
    dropped are zeros, with their biases. Rows and columns are in the order of the model that was compiled. All is in
    bfloat16 where that holds every value of the bundle exactly, else in float32. So weights and embedding tables are
    what the engine multiplies with.

    Raises:
        UnknownTaskError: the bundle has no such task.
        ConfigError: ``out`` exists already, or cannot be written; or the task has dropped experts.
        BundleError: a page or file is damaged.
    """
    bundle.task(task)
    target = free_target(out)
    config, left_out = read_config(bundle), layers_left_out(bundle, task) if left_out is None else left_out
    values = {**read_parameters(bundle, RESIDENT), **read_parameters(bundle, private_file(task))}
    low_rank = read_low_rank(bundle, task)
    dtype = torch.float32 if low_rank or _wider(bundle) else activation_dtype(values.values())
    rows = {name: table.to(dtype) for name, table in read_rows(bundle).items()}
    values = rows | widened(bundle, values, dtype)
    dropped = bundle.dropped(task)
    module = empty_module(_shorter(config, left_out), bundle.task(task), len(values) + len(bundle.manifest.weights))
    if route(module, task, {name: table for name, table in bundle.tables(task).items() if name not in dropped}):
        raise ConfigError(
            f"out: {task} has dropped experts, which its routers pass over, and a directory of transformers can't say "
            "so: there they would be chosen, and answer zero. Run the task from the bundle"
        )
    values = {name: value.to(dtype) if value.dtype == torch.bfloat16 else value for name, value in values.items()}
    for name, weight in dense_weights(bundle, task).items():
        part = None if name in dropped else low_rank.get(name)
        merged = weight if part is None else weight.float() + torch.from_numpy(part.up @ part.down)
        values[f"{name}.weight"] = merged.to(dtype)
        if name in dropped and f"{name}.bias" in values:
            values[f"{name}.bias"] = torch.zeros_like(values[f"{name}.bias"])
    renamed = _renumbered(in_original_order(bundle, task, values), left_out)
    state = {full_name(module, name): value for name, value in renamed.items()}
    assign(module, state, task)
    set_generation(module, read_generation(bundle, config))
    readers = preprocessors(bundle)
    _end_answers(module, bundle.task(task), readers[0])
    set_as_published(module)
    with new_directory(target, partial(refusals, target), replace=False) as temporary, refusals(target):
        with quiet_transformers():
            module.save_pretrained(temporary)  # type: ignore[operator]
        for reader in readers:
            reader.save_pretrained(temporary)
        if bundle.pictures is not None:
            (temporary / PROCESSOR).write_bytes((model_dir(bundle) / PROCESSOR).read_bytes())
    return target


_LISTS = ("layer_types", "no_rope_layers", "mlp_layer_types")
"""Settings that have an entry for each layer, and go with it."""

_BY_NUMBER = ("scale_attn_by_inverse_layer_idx", "scale_attention_by_inverse_layer_idx")
"""Settings by which a layer's number decides what it computes."""


def layers_left_out(bundle: Bundle, task: str) -> dict[str, list[int]]:
    """The layers that a task's exported directory lacks: the list of layers, by canonical name, and their numbers.

    Those of which the task's graph uses nothing, as long as transformers' configuration can say so: it knows how many
    layers there are, and one has to stay. Layers that would have other parameters under their new numbers keep theirs.
    """
    dropped, graph = bundle.dropped(task), bundle.graph(bundle.task(task).kind)
    if not dropped or graph is None:
        return {}
    config: Any = read_config(bundle).get_text_config()
    try:
        left = without(graph, {f"{name}.weight" for name in dropped})
    except ValueError:  # what torch runs, graphs needn't be able to say
        return {}
    used = {found.group(1, 2) for name in left.parameters() if (found := _LAYER.match(name))}
    layers = {found.group(1, 2) for name in graph.parameters() if (found := _LAYER.match(name))}
    gone = sorted(layers - used, key=lambda layer: int(layer[1]))
    lists, count = {name for name, _ in layers}, getattr(config, "num_hidden_layers", None)
    each = [key for key, value in config.to_dict().items() if isinstance(value, list) and len(value) == count]
    if (
        len(lists) != 1
        or count != len(layers)
        or not {*each} <= {*_LISTS}
        or any(getattr(config, key, False) for key in _BY_NUMBER)
    ):
        return {}
    gone = gone[: len(layers) - 1]
    left_out = {name: [int(number) for _, number in gone] for name in lists if gone}
    return left_out if left_out and _same_layers(bundle, task, left_out) else {}


_LAYER = re.compile(r"(base_model(?:\.[a-z_]+)*)\.(\d+)\.")


def _same_layers(bundle: Bundle, task: str, left_out: Mapping[str, list[int]]) -> bool:
    """Whether layers that move up have the same parameters there; ModernBERT's first layer has a norm less."""
    config, limit = read_config(bundle), len(bundle.manifest.weights)

    def shapes(config: Any) -> dict[str, Tensor]:
        module = empty_module(config, bundle.task(task), limit)
        prefix = f"{full_name(module, BASE)}"
        return {
            f"{BASE}{name.removeprefix(prefix)}" if name.startswith(prefix) else name: value
            for name, value in module.state_dict().items()
        }

    moved, shorter = _renumbered(shapes(config), left_out), shapes(_shorter(config, left_out))
    return {name: value.shape for name, value in moved.items()} == {
        name: value.shape for name, value in shorter.items()
    }


def _shorter(config: Any, left_out: Mapping[str, Sequence[int]]) -> Any:
    """A configuration without these layers."""
    if not left_out:
        return config
    config = copy.deepcopy(config)
    text, ((_, numbers),) = config.get_text_config(), left_out.items()
    kept = [number for number in range(text.num_hidden_layers) if number not in numbers]
    for key in _LISTS:
        if getattr(text, key, None) is not None:
            setattr(text, key, [getattr(text, key)[number] for number in kept])
    text.num_hidden_layers = len(kept)
    return config


def _renumbered(values: dict[str, Tensor], left_out: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Parameters, by canonical name, without those of these layers; the layers behind them move up."""
    renamed = {}
    for name, value in values.items():
        found = _LAYER.match(name)
        gone = left_out.get(found[1], []) if found else []
        if found and int(found[2]) in gone:
            continue
        number = 0 if found is None else int(found[2]) - sum(other < int(found[2]) for other in gone)
        renamed[f"{found[1]}.{number}.{name[found.end() :]}" if found and gone else name] = value
    return renamed


def _wider(bundle: Bundle) -> bool:
    """Whether bfloat16 is too narrow for some weights, such as an int4 number times its scale."""
    return bundle.manifest.dtype != "bfloat16" or bool(bundle.row_tables or bundle.manifest.whole_weights)


def _end_answers(module: Any, task: TaskEntry, tokenizer: Any) -> None:
    """Let a task that answers prompts state where its answers end, as an engine ends them.

    Training teaches the tokenizer's end token, which may be another one than the model's.
    """
    if task.generation is None:
        return
    stated = module.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(stated if isinstance(stated, list) else [stated])} - {None}
    module.generation_config.eos_token_id = sorted(ends) if len(ends) > 1 else ends.pop()
    module.generation_config.max_new_tokens = task.generation.max_new_tokens


def in_original_order(bundle: Bundle, task: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """A task's parameters, by canonical name, with the compiler's reordering undone.

    Raises:
        BundleFormatError: the bundle orders an axis that a parameter doesn't have.
    """
    back = bundle.permutations().inverse()
    restored = {}
    for name, value in values.items():
        for axis, order in back.of(task, name).items():
            if axis >= value.ndim or value.shape[axis] != len(order):
                wanted = f"an axis of {list(value.shape)}"
                raise BundleFormatError(
                    permutations_file.PERMUTATIONS, f"{name}:{axis}", wanted, f"{len(order)} indices"
                )
            value = value.index_select(axis, torch.from_numpy(order))
        restored[name] = value
    return restored


def dense_weights(bundle: Bundle, task: str) -> dict[str, Tensor]:
    """Every paged weight of a task as a dense tensor ``[out_features, in_features]`` of the bundle's dtype."""
    pages = bundle.pages_of(task)
    page_table = np.full(len(bundle.pages), -1, np.int32)
    page_table[pages] = np.arange(len(pages))
    arena = np.zeros((max(1, len(pages)), bundle.page_bytes), np.uint8)
    store = VerifyingStore(LocalStore(bundle, direct=False), bundle.pages)
    try:
        for slot, page in enumerate(pages):
            store.read(int(page), [arena[slot].data])
    finally:
        store.close()
    tables = bundle.tables(task)
    stored = {entry.name: StoredMatrix.of_entry(bundle, entry, tables[entry.name]) for entry in bundle.manifest.weights}
    return {name: reference.dense_weight(matrix.on_host(arena, page_table)) for name, matrix in stored.items()}
