"""How much storage a compile will take, told before hours are spent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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

_PER_KEPT = 12
"""Bytes of a block table for each block that a task keeps."""

_PER_FILE = 16 << 10
"""Headers, the manifest, the report: what doesn't grow with the model."""

_MOMENTS = 2
"""Adam's moments, which the entry of a running training has beside the values."""

_WEIGHTS = (".safetensors", ".bin", ".gguf")


@dataclass(frozen=True)
class _Stage:
    """Bytes of a stage's entry while it runs, and when it is finished."""

    running: int
    finished: int


def bundle_bytes(source: DenseModel) -> int:
    """A rough upper estimate of a bundle, or of what tasks that are added to one bring."""
    file, tasks = source.task_file, list(source.models)
    size, layers = block_bytes(file.block, file.dtype), max(info.layer for info in source.paged) + 1
    blocks = sum(info.grid.count for info in source.paged)
    kept = {task: round((1 - file.sparsity_of(task)) * blocks) for task in tasks}
    private_share = file.recover.private_blocks if file.recover.method == "finetune" else 0.0
    together = sum(kept.values()) if source.versions else min(blocks, sum(kept.values()))
    stored = round((together + private_share * sum(kept.values())) * size / _FILL) + layers * (file.page or _PAGE)
    rows = sum(info.grid.rows for info in source.paged)
    tables = _PER_KEPT * sum(kept.values()) + len(tasks) * 4 * rows
    low_rank = 4 * len(tasks) * file.recover.low_rank * _sides(source)
    files = 3 * len(tasks) * _PER_FILE + _model_files(source.path)
    return stored + tables + low_rank + _order_bytes(source) + _resident_bytes(source) + files


def journal_bytes(source: DenseModel, *, adds: bool = False, bundle: int = 0) -> int:
    """A rough upper estimate of what a compile keeps beside the bundle, and of the bundle, which comes last.

    A new entry is written before the old one goes: for a moment there are both.

    Args:
        source: the dense model.
        adds: whether tasks are added to a bundle.
        bundle: bytes that come on top of what is finished.
    """
    held = most = 0
    for stage in _stages(source, adds):
        most = max(most, held + 2 * stage.running)
        held += stage.finished
    return max(most, held + bundle)


def cache_bytes(source: DenseModel) -> int:
    """A rough upper estimate of what a compile gives to the cache."""
    return source.parameter_bytes + _PER_FILE + len(source.models) * (source.paged_bytes + _PER_FILE)


def check_storage(
    source: DenseModel, journal: Path | None, cache: Cache, base: BaseBundle | None = None, *, scratch: int = 0
) -> None:
    """Refuse a compile whose bundle and journal can't fit; and where only the cache can't, keep nothing there.

    Args:
        source: the dense model, its steps settled.
        journal: folder beside the bundle; None if nothing is written there.
        cache: of what compiles share.
        base: bundle that the tasks are added to.
        scratch: bytes of what lies on disk while the bundle is made, as it doesn't fit into memory.

    Raises:
        CompileError: they need more than is free.
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


def _stages(source: DenseModel, adds: bool) -> Iterator[_Stage]:
    """The stages that have entries in a journal, in order."""
    file, spec = source.task_file, source.task_file.recover
    values, paged = source.parameter_bytes + _PER_FILE, source.paged_bytes
    best = 1 if spec.patience else 0
    if file.trained_tasks:
        yield _Stage((1 + _MOMENTS) * values, values)
    blocks = sum(info.grid.count for info in source.paged)
    yield _Stage(0, 8 * blocks * len(source.models) + _order_bytes(source) + _PER_FILE)
    for _ in range(2 if file.compare == "all" and not adds else 1):
        if spec.refits:
            yield _Stage(paged, paged)
        if spec.method == "finetune" and not adds:
            yield _Stage((1 + _MOMENTS + best) * values, values)
        if spec.method == "finetune" and (adds or spec.trains_alone):
            trained_bytes = paged + 4 * spec.low_rank * _sides(source) + _vector_bytes(source)
            for _task in source.models:
                yield _Stage((1 + _MOMENTS + best) * trained_bytes, trained_bytes)

    if file.compare != "none" and file.recovery_steps and not adds:  # the control
        yield _Stage((1 + _MOMENTS + best) * values, values)


def _sides(source: DenseModel) -> int:
    """Rows and columns of all paged weights."""
    return sum(info.grid.out_features + info.grid.in_features for info in source.paged)


def _vector_bytes(source: DenseModel) -> int:
    """Bytes of the parameters that may be one task's own: all but paged weights and the base's matrices."""
    model = next(iter(source.models.values()))
    return sum(4 * t.numel() for name, t in parameters(model).items() if t.ndim == 1 or "pooler" in name) + _PER_FILE


def _resident_bytes(source: DenseModel) -> int:
    """What isn't paged, and once more for each task what a training of its own parameters may change."""
    file = source.task_file
    form = ParameterFormat.of(source.config, source.models, file.dtype, file.block)
    paged = {f"{info.name}.weight" for info in source.paged}
    sizes = {
        id(tensor): form.bytes_of(name, tensor)
        for model in source.models.values()
        for name, tensor in parameters(model).items()
        if name not in paged
    }
    spec = file.recover
    trains_alone = spec.method == "finetune" and spec.trains_alone
    return sum(sizes.values()) + (len(source.models) * _vector_bytes(source) if trains_alone else 0)


def _order_bytes(source: DenseModel) -> int:
    return 2 * 8 * _sides(source) if source.task_file.reorder else 0


def _model_files(folder: Path) -> int:
    """Configuration and tokenizer, which may be written more widely than they were."""
    sizes = [path.stat().st_size for path in folder.iterdir() if path.is_file() and path.suffix not in _WEIGHTS]
    return 2 * sum(sizes) + _PER_FILE


def _copied(base: BaseBundle | None, to: Path) -> int:
    """Bytes of the base that can't be linked to: all of them on another file system, else those beside pages."""
    if base is None:
        return 0
    here = file_system(base.bundle.path) == file_system(to)
    linked = set(base.bundle.manifest.page_file_names()) if here else set()
    files = (path for path in base.bundle.path.rglob("*") if path.is_file() and path.name not in linked)
    return sum(path.stat().st_size for path in files)
