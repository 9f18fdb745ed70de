"""How much storage a compile will take, told before hours are spent."""

from __future__ import annotations

from pathlib import Path

from weightpager.compiler.base_bundle import BaseBundle
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.model.paged_weights import parameters
from weightpager.compiler.model.parameter_format import ParameterFormat
from weightpager.compiler.resume.cache import Cache
from weightpager.config import format_enough, format_room, format_size
from weightpager.errors import CompileError
from weightpager.machine.storage import file_system, free_bytes
from weightpager.page_dtype import block_bytes

_FILL = 0.9
"""Share of the pages that blocks fill at least, the last page of each layer apart."""

_PAGE = 64 << 10
"""Bytes of that last page, which may be nearly empty, where the packer chooses."""

_PER_BLOCK = 16
"""Bytes of tables, and of saliency, for each block and task."""

_PER_SIDE = 16
"""Bytes of an order for each row and column of a paged weight."""

_PER_FILE = 16 << 10
"""Headers, the manifest, the report: what doesn't grow with the model."""

_WEIGHTS = (".safetensors", ".bin", ".gguf")


def bundle_bytes(source: DenseModel) -> int:
    """A rough upper estimate of a bundle, or of what tasks that are added to one bring."""
    file, tasks = source.task_file, list(source.models)
    size, layers = block_bytes(file.block, file.dtype), max(info.layer for info in source.paged) + 1
    blocks = sum(info.grid.count for info in source.paged)
    kept = sum(round((1 - source.sparsity_of(task)) * blocks) for task in tasks)
    private_share = file.recover.private_blocks if file.recover.method == "finetune" else 0.0
    together = kept if source.versions else min(blocks, kept)
    pages = round((together + private_share * kept) * size / _FILL) + layers * (file.page or _PAGE)
    tables = len(tasks) * _PER_BLOCK * blocks + _PER_SIDE * _sides(source)
    form = ParameterFormat.of(source.config, source.models, file.dtype, file.block)
    paged = {f"{info.name}.weight" for info in source.paged}
    resident = {
        id(tensor): form.bytes_of(name, tensor)
        for model in source.models.values()
        for name, tensor in parameters(model).items()
        if name not in paged
    }
    model_files = (path for path in source.path.iterdir() if path.is_file() and path.suffix not in _WEIGHTS)
    files = 2 * sum(path.stat().st_size for path in model_files)  # which may be written more widely than they were
    own = len(tasks) * _own_bytes(source) if file.recover.trains_alone else 0
    return pages + tables + sum(resident.values()) + own + files + (3 * len(tasks) + 1) * _PER_FILE


def journal_bytes(source: DenseModel, *, adds: bool = False, bundle: int = 0) -> int:
    """A rough upper estimate of what a compile keeps beside the bundle, and of the ``bundle``, which comes last.

    Each stage leaves a copy of the weights at most. While a stage is trained its entry has Adam's two moments too, and
    the best values so far; a new entry is written before the old one goes.
    """
    file, spec = source.task_file, source.task_file.recover
    copy = source.parameter_bytes + _PER_FILE
    tuned, alone = spec.method == "finetune" and not adds, spec.method == "finetune" and (adds or spec.trains_alone)
    recoveries = 2 if file.compare == "all" and not adds else 1
    trained = bool(file.trained_tasks) + recoveries * tuned + (tuned and file.compare != "none")
    own = source.paged_bytes + _own_bytes(source) if alone else 0
    left = (trained + recoveries * spec.refits) * copy + recoveries * len(source.models) * own
    left += len(source.models) * _PER_BLOCK * sum(info.grid.count for info in source.paged) + _PER_SIDE * _sides(source)
    running = (3 + bool(spec.patience)) * max(copy, own) if trained or alone else spec.refits * copy
    return left + _PER_FILE + max(2 * running, bundle)


def _sides(source: DenseModel) -> int:
    """Rows and columns of all paged weights."""
    return sum(info.grid.out_features + info.grid.in_features for info in source.paged)


def _own_bytes(source: DenseModel) -> int:
    """A task's low-rank parts, and the parameters that may be its own: all but paged weights and matrices."""
    model, rank = next(iter(source.models.values())), source.task_file.recover.low_rank
    vectors = (4 * t.numel() for name, t in parameters(model).items() if t.ndim == 1 or "pooler" in name)
    return 4 * rank * _sides(source) + sum(vectors) + _PER_FILE


def cache_bytes(source: DenseModel) -> int:
    """A rough upper estimate of what a compile gives to the cache."""
    return source.parameter_bytes + _PER_FILE + len(source.models) * (source.paged_bytes + _PER_FILE)


def check_storage(
    source: DenseModel, journal: Path | None, cache: Cache, base: BaseBundle | None = None, *, scratch: int = 0
) -> None:
    """Refuse a compile whose bundle and journal can't fit; and where only the cache can't, keep nothing there.

    The journal is None if nothing is written beside the bundle. ``scratch`` are bytes of what lies on disk while the
    bundle is made, as it doesn't fit into memory.
    """
    if journal is None:
        return
    bundle, free = bundle_bytes(source) + _copied(base, journal), free_bytes(journal)
    needed = journal_bytes(source, adds=base is not None, bundle=bundle) + scratch
    there = sum(path.stat().st_size for path in journal.rglob("*") if path.is_file())  # of an earlier run
    if free is not None and needed > free + there:
        raise CompileError(
            f"out: expected about {format_enough(needed - there)} of free storage at {journal.parent}, found "
            f"{format_room(free)}: up to {format_size(bundle)} for the bundle, the rest for what the compile "
            "keeps to go on from until that is whole; free some, or choose another --out"
        )
    if cache.folder is None:
        return
    left = free_bytes(cache.folder)
    beside = needed if file_system(cache.folder) == file_system(journal) else 0
    if left is not None and cache_bytes(source) + beside > left:
        cache.stop(
            f"expected about {format_enough(cache_bytes(source) + beside)} of free storage, found {format_room(left)}"
        )


def _copied(base: BaseBundle | None, to: Path) -> int:
    """Bytes of the base that can't be linked to: all of them on another file system, else those beside pages."""
    if base is None:
        return 0
    here = file_system(base.bundle.path) == file_system(to)
    linked = set(base.bundle.manifest.page_file_names()) if here else set()
    files = (path for path in base.bundle.path.rglob("*") if path.is_file() and path.name not in linked)
    return sum(path.stat().st_size for path in files)
