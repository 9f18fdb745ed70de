"""Bundles as version 2 has them: low-rank parts in files of PEFT's layout, as no compile writes them any more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from msgspec.structs import replace
from safetensors.numpy import save

from benchmarks.fuzz.sealing import rewrite_manifest
from weightpager.bundle import Bundle, writing
from weightpager.bundle.adapter import AdapterConfig
from weightpager.bundle.format.low_rank import LowRank
from weightpager.bundle.format.names import adapter_files
from weightpager.bundle.task_subset import TaskSubset
from weightpager.store.block_reader import read_low_rank


def with_adapter_files(path: Path, prefix: str) -> Path:
    """Turn a bundle into one of version 2, whose modules call their base ``prefix``."""
    bundle = Bundle.open(path)
    parts = {name: read_low_rank(bundle, name) for name in bundle.tasks if bundle.low_rank(name) is not None}
    blocks = ~bundle.placement.without_blocks()
    manifest, count = bundle.manifest, int(blocks.sum())
    files = [n for n, end in zip(manifest.page_files, np.cumsum(manifest.page_files), strict=True) if end <= count]
    assert sum(files) == count, "low-rank pages are in files of their own, behind those of blocks"
    with writing(path, force=True, origin=bundle) as writer:
        for name in manifest.page_file_names()[: len(files)]:
            writer.link(name, path / name)
        subset = TaskSubset(bundle, tuple(bundle.tasks))
        subset.carry_over(writer)
        subset.carry_over_rows(writer)
        writer.put_index(bundle.pages.first(count).with_rows(bundle.row_ids))
        writer.put_placement(bundle.placement.only(blocks, subset.numbers))
        for task, low_rank in parts.items():
            _write(writer.root, task, prefix, low_rank)
        tasks = [replace(task, low_rank=None) for task in manifest.tasks]
        subset.finish(writer, replace(manifest, tasks=tasks, page_files=files))
    rewrite_manifest(path, lambda content: content.update(version=2))
    return path


def _write(root: Path, task: str, prefix: str, parts: dict[str, LowRank]) -> None:
    rank, arrays = len(next(iter(parts.values())).down), {}
    modules = {name: f"{prefix}.{name.removeprefix('base_model.')}" for name in parts}
    for name, part in parts.items():
        arrays[f"base_model.model.{modules[name]}.lora_A.weight"] = part.down
        arrays[f"base_model.model.{modules[name]}.lora_B.weight"] = part.up
    config = AdapterConfig(
        peft_type="LORA",
        task_type=None,
        base_model_name_or_path=None,
        r=rank,
        lora_alpha=float(rank),
        target_modules=list(modules.values()),
        bias="none",
        inference_mode=True,
    )
    for file, content in zip(adapter_files(task), (config.dump(), save(arrays, {"format": "pt"})), strict=True):
        (root / file).write_bytes(content)
