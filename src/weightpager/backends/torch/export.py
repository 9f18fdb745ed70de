"""A task of a bundle as an ordinary dense-with-zeros transformers directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from weightpager.backends.task_parts import of_entry
from weightpager.backends.torch.architecture import (
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
from weightpager.bundle.adapter import read_adapter
from weightpager.bundle.files.new_directory import new_directory
from weightpager.bundle.format import placement as permutations_file
from weightpager.bundle.format.names import RESIDENT, private_file
from weightpager.bundle.model_files import model_dir
from weightpager.bundle.settings import PROCESSOR
from weightpager.errors import BundleFormatError, ConfigError
from weightpager.kernels.torch import reference
from weightpager.machine.paths import has_directory
from weightpager.nn.experts import set_as_published
from weightpager.store import LocalStore, VerifyingStore


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


def export_task(bundle: Bundle, task: str, out: str | Path) -> Path:
    """Write a task's model so that plain transformers loads it; dropped blocks are zeros, and low-rank parts are added.

    Rows and columns are in the order of the model that was compiled. All is in bfloat16 where that holds every value of
    the bundle exactly, else in float32. So weights and embedding tables are what the engine multiplies with.

    Raises:
        UnknownTaskError: the bundle has no such task.
        ConfigError: ``out`` exists already, or cannot be written; or the task has dropped experts.
        BundleError: a page or file is damaged.
    """
    bundle.task(task)
    target = free_target(out)
    config = read_config(bundle)
    values = {**read_parameters(bundle, RESIDENT), **read_parameters(bundle, private_file(task))}
    low_rank = read_adapter(bundle, task)
    dtype = torch.float32 if low_rank or _wider(bundle) else activation_dtype(values.values())
    rows = {name: table.to(dtype) for name, table in read_rows(bundle).items()}
    values = rows | widened(bundle, values, dtype)
    module = empty_module(config, bundle.task(task), len(values) + len(bundle.manifest.weights))
    if route(module, task, bundle.tables(task)):
        raise ConfigError(
            f"out: {task} has dropped experts, which its routers pass over, and a directory of transformers can't say "
            "so: there they would be chosen, and answer zero. Run the task from the bundle"
        )
    values = {name: value.to(dtype) if value.dtype == torch.bfloat16 else value for name, value in values.items()}
    for name, weight in dense_weights(bundle, task).items():
        part = low_rank.get(name)
        merged = weight if part is None else weight.float() + torch.from_numpy(part.up @ part.down)
        values[f"{name}.weight"] = merged.to(dtype)
    state = {full_name(module, name): value for name, value in in_original_order(bundle, task, values).items()}
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
    return {
        entry.name: reference.dense_weight(of_entry(bundle, entry, tables[entry.name], arena, page_table))
        for entry in bundle.manifest.weights
    }
