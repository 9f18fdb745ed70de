"""The methods of the contest, ours and those of others: pure, nothing is loaded before a method is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from weightpager.bundle import Bundle
from weightpager.machine.packages import TORCH, is_installed
from weightpager_lab.companions import Name
from weightpager_lab.contest.rivals.rival import Rival, Setting

Asset = Literal["dense", "sparse", "int8", "int4"]


@dataclass(frozen=True)
class Method:
    """A way to serve many tasks.

    Attributes:
        name: in rows.
        label: for people.
        make: sets it up in this process.
        assets: which files it reads beside the bundle.
        packages: that it needs, beside torch where it reads files: those are written by torch.
        lazy: its switch returns before all weights are in memory, so that only first outputs can be compared.
        rooms: it is measured with memory for one task, for more, or for both: others have no use for more.
        quick: whether it is part of a quick contest.
        companion: it runs this companion of the bundle; None for the bundle itself.
        reads_by_library: its reads are a library's, which only the kernel can slow down; others pace themselves.
        tasks: how many tasks it is measured on; None for all.
        shared_tower: it takes part only where all tasks share a picture tower.
    """

    name: str
    label: str
    make: Callable[[Setting], Rival]
    assets: tuple[Asset, ...] = ()
    packages: tuple[str, ...] = ()
    lazy: bool = False
    rooms: Literal["one", "more", "both"] = "one"
    quick: bool = True
    companion: Name | None = None
    reads_by_library: bool = False
    tasks: int | None = None
    shared_tower: bool = False

    def suits(self, bundle: Bundle) -> bool:
        """Whether it can take part in the contest of a bundle."""
        return not self.shared_tower or (bundle.pictures is not None and bundle.pictures.blocks == "shared")

    @property
    def skipped(self) -> str:
        """Why it isn't measured on this machine; empty if it is."""
        needed = (*TORCH, *self.packages) if self.assets else self.packages
        absent = [package for package in needed if not is_installed(package)]
        return f"no package {absent[0]}; install 'weightpager[bench]'" if absent else ""


def _lazily(module: str, name: str, **options: Any) -> Callable[[Setting], Rival]:
    """A maker of a class in a module beside this one; the module is imported when the maker is called."""

    def make(setting: Setting) -> Rival:
        made: Rival = getattr(import_module(f"weightpager_lab.contest.rivals.{module}"), name)(setting, **options)
        return made

    return make


_OURS = _lazily("ours", "Ours")
_OURS_WHILE_LOADING = _lazily("ours", "Ours", wait=False)
_OURS_ON_TORCH = _lazily("ours", "Ours", backend="torch")
_SPARSE = _lazily("checkpoints", "WholeCheckpoints", kind="sparse", direct=True)
_SPARSE_COPIED = _lazily("checkpoints", "WholeCheckpoints", kind="sparse", direct=False)
_SPARSE_STRICT = _lazily("sparse_tasks", "SparseTasks", places=1)
_SPARSE_LANGUAGE = _lazily("sparse_tasks", "SparseTasks", places=1, language=True)
_SPARSE_LRU = _lazily("sparse_tasks", "SparseTasks")
_DENSE = _lazily("checkpoints", "WholeCheckpoints", kind="dense", direct=True)
_DENSE_COPIED = _lazily("checkpoints", "WholeCheckpoints", kind="dense", direct=False)
_DENSE_MAPPED = _lazily("checkpoints", "MappedCheckpoints")
_OFFLOAD = _lazily("checkpoints", "DiskOffload")
_SHARED_BF16 = _lazily("backbone", "SharedBackbone", dtype="bfloat16")
_SHARED_INT8 = _lazily("backbone", "SharedBackbone", dtype="int8")
_DENSE_INT8 = _lazily("backbone", "DenseBackbone", dtype="int8")
_DENSE_INT4 = _lazily("backbone", "DenseBackbone", dtype="int4")
_SHARED_MASK = _lazily("sparse_tasks", "SharedMask")
_LIBRARY: dict[str, Any] = {"quick": False, "reads_by_library": True}

METHODS: Sequence[Method] = (
    Method("ours", "weightpager", _OURS, rooms="both"),
    Method("ours_while_loading", "weightpager, running while it loads", _OURS_WHILE_LOADING, lazy=True, quick=False),
    Method("ours_on_torch", "weightpager, computing with torch", _OURS_ON_TORCH, packages=TORCH, quick=False),
    Method("ours_unaligned", "weightpager without alignment", _OURS, companion="unaligned"),
    Method("ours_all_blocks", "weightpager, all blocks, nothing to switch", _OURS, companion="all_blocks"),
    Method("ours_one_mask", "weightpager, one mask for all tasks", _OURS, companion="one_mask"),
    Method("sparse_whole", "sparse checkpoint per task, whole, direct", _SPARSE, ("sparse",)),
    Method("sparse_strict", "sparse checkpoint per task, paged weights only", _SPARSE_STRICT, ("sparse",)),
    Method(
        "sparse_language",
        "sparse checkpoint per task, language model's blocks only",
        _SPARSE_LANGUAGE,
        ("sparse",),
        shared_tower=True,
    ),
    Method("dense_int4", "dense int4 and int8 tables, a head per task", _DENSE_INT4, ("int4",)),
    Method("shared_mask", "one shared mask", _SHARED_MASK, ("sparse",)),
    Method("shared_bf16", "shared dense backbone, PEFT adapters", _SHARED_BF16, ("dense",), ("peft",)),
    Method(
        "sparse_copied", "sparse checkpoint per task, whole, by safetensors", _SPARSE_COPIED, ("sparse",), **_LIBRARY
    ),
    Method("sparse_lru", "LRU of whole sparse tasks", _SPARSE_LRU, ("sparse",), rooms="more", quick=False),
    Method("dense_direct", "dense checkpoint per task, direct", _DENSE, ("dense",)),
    Method("dense_copied", "dense checkpoint per task, by safetensors", _DENSE_COPIED, ("dense",), **_LIBRARY),
    Method("dense_mapped", "dense checkpoint per task, mapped", _DENSE_MAPPED, ("dense",), lazy=True, **_LIBRARY),
    Method("offload", "accelerate disk offload", _OFFLOAD, ("dense",), ("accelerate",), lazy=True, tasks=2, **_LIBRARY),
    Method("shared_int8", "shared int8 backbone, PEFT adapters", _SHARED_INT8, ("int8",), ("peft",)),
    Method("dense_int8", "dense int8 and int8 tables, a head per task", _DENSE_INT8, ("int8",)),
)
"""Ours first, then the most telling rivals: a quick contest may not reach the last ones."""


def method(name: str) -> Method:
    return next(method for method in METHODS if method.name == name)
