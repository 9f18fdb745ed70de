"""The methods of the contest, ours and those of others: pure, nothing is loaded before a method is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from weightpager.lab.contest.rivals.rival import Rival, Setting

Asset = Literal["dense", "sparse", "int8"]


@dataclass(frozen=True)
class Method:
    """A way to serve many tasks.

    Attributes:
        name: in rows.
        label: for people.
        make: sets it up in this process.
        assets: which files it reads beside the bundle.
        packages: that it needs.
        lazy: its switch returns before all weights are in memory, so that only first outputs can be compared.
        rooms: it is measured with memory for one task, for more, or for both: others have no use for more.
        quick: whether it is part of a quick contest.
        unaligned: it runs the bundle that was made without alignment.
        reads_by_library: its reads are a library's, which only the kernel can slow down; others pace themselves.
        tasks: how many tasks it is measured on; None for all.
        missing: why it can't be measured at all; empty if it can.
    """

    name: str
    label: str
    make: Callable[[Setting], Rival]
    assets: tuple[Asset, ...] = ()
    packages: tuple[str, ...] = ()
    lazy: bool = False
    rooms: Literal["one", "more", "both"] = "one"
    quick: bool = True
    unaligned: bool = False
    reads_by_library: bool = False
    tasks: int | None = None
    missing: str = ""

    @property
    def skipped(self) -> str:
        """Why it isn't measured on this machine; empty if it is."""
        absent = [package for package in self.packages if find_spec(package) is None]
        return self.missing or (f"no package {', '.join(absent)}; install 'weightpager[bench]'" if absent else "")


def _ours(setting: Setting) -> Rival:
    from weightpager.lab.contest.rivals.ours import Ours

    return Ours(setting)


def _ours_while_loading(setting: Setting) -> Rival:
    from weightpager.lab.contest.rivals.ours import Ours

    return Ours(setting, wait=False)


def _checkpoints(kind: Literal["dense", "sparse"], *, direct: bool) -> Callable[[Setting], Rival]:
    def make(setting: Setting) -> Rival:
        from weightpager.lab.contest.rivals.checkpoints import WholeCheckpoints

        return WholeCheckpoints(setting, kind, direct=direct)

    return make


def _mapped(setting: Setting) -> Rival:
    from weightpager.lab.contest.rivals.checkpoints import MappedCheckpoints

    return MappedCheckpoints(setting)


def _strict(setting: Setting) -> Rival:
    from weightpager.lab.contest.rivals.sparse_tasks import SparseTasks

    return SparseTasks(setting, places=1)


def _lru(setting: Setting) -> Rival:
    from weightpager.lab.contest.rivals.sparse_tasks import SparseTasks

    return SparseTasks(setting)


def _shared_mask(setting: Setting) -> Rival:
    from weightpager.lab.contest.rivals.sparse_tasks import SharedMask

    return SharedMask(setting)


def _offload(setting: Setting) -> Rival:
    from weightpager.lab.contest.rivals.offload import DiskOffload

    return DiskOffload(setting)


def _shared_backbone(*, int8: bool) -> Callable[[Setting], Rival]:
    def make(setting: Setting) -> Rival:
        from weightpager.lab.contest.rivals.shared_backbone import SharedBackbone

        return SharedBackbone(setting, int8=int8)

    return make


_NO_LLAMA = (
    "llama-cpp-python has no wheel for this platform, and a server's swap needs a GGUF file of every task; it loads a "
    "whole checkpoint, which the dense rows do too"
)
_NO_PREFETCH = "loading ahead needs time between switches: it is measured on traces, by 'python -m benchmarks.prefetch'"

METHODS: Sequence[Method] = (
    Method("ours", "weightpager", _ours, rooms="both"),
    Method("ours_while_loading", "weightpager, running while it loads", _ours_while_loading, lazy=True, quick=False),
    Method("ours_unaligned", "weightpager without alignment", _ours, unaligned=True),
    Method("ours_prefetch", "weightpager with prefetch", _ours, missing=_NO_PREFETCH),
    Method("oracle", "weightpager, told the future", _ours, missing=_NO_PREFETCH),
    Method(
        "sparse_whole", "sparse checkpoint per task, whole, direct", _checkpoints("sparse", direct=True), ("sparse",)
    ),
    Method("sparse_strict", "sparse checkpoint per task, paged weights only", _strict, ("sparse",)),
    Method("shared_bf16", "shared dense backbone, PEFT adapters", _shared_backbone(int8=False), ("dense",), ("peft",)),
    Method(
        "sparse_copied",
        "sparse checkpoint per task, whole, by safetensors",
        _checkpoints("sparse", direct=False),
        ("sparse",),
        quick=False,
        reads_by_library=True,
    ),
    Method("sparse_lru", "LRU of whole sparse tasks", _lru, ("sparse",), rooms="more", quick=False),
    Method("dense_direct", "dense checkpoint per task, direct", _checkpoints("dense", direct=True), ("dense",)),
    Method(
        "dense_copied",
        "dense checkpoint per task, by safetensors",
        _checkpoints("dense", direct=False),
        ("dense",),
        quick=False,
        reads_by_library=True,
    ),
    Method(
        "dense_mapped",
        "dense checkpoint per task, mapped",
        _mapped,
        ("dense",),
        lazy=True,
        quick=False,
        reads_by_library=True,
    ),
    Method(
        "offload",
        "accelerate disk offload",
        _offload,
        ("dense",),
        ("accelerate",),
        lazy=True,
        quick=False,
        reads_by_library=True,
        tasks=2,
    ),
    Method("shared_int8", "shared int8 backbone, PEFT adapters", _shared_backbone(int8=True), ("int8",), ("peft",)),
    Method("shared_mask", "one shared mask", _shared_mask, ("sparse",)),
    Method("llama_cpp", "llama.cpp server's model swap", _strict, missing=_NO_LLAMA),
)
"""Ours first, then in the order of what one would give up last: a quick contest may not come to the end."""


def method(name: str) -> Method:
    """The method of a name that is known to exist."""
    return next(method for method in METHODS if method.name == name)
