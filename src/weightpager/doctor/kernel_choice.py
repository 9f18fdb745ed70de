"""Which kernels this machine can run, which one serves, and why."""

from __future__ import annotations

import os
from dataclasses import dataclass

from weightpager import kernels
from weightpager.kernels.choice import NATIVE, NO_NATIVE
from weightpager.machine.packages import is_installed


@dataclass(frozen=True)
class KernelChoice:
    """What multiplies by paged weights in this process.

    Attributes:
        available: kernels that can run here, best first; the reference, which is plain torch, where that is installed.
        chosen: the one that serves.
        asked: what ``WEIGHTPAGER_ISA`` names; None if it doesn't.
        exact: the one that serves float32 activations and weights.
        threading: ``"gomp"``, ``"own"`` or, for the reference, ``"torch"``.
        threads: number of threads that the kernels spread their work over.
        missing: the reason why the native kernels are not there; empty if they are.
        gpu: the one that serves on a GPU; None where torch sees none, or isn't installed.
    """

    available: tuple[str, ...]
    chosen: str
    asked: str | None
    exact: str
    threading: str
    threads: int
    missing: str
    gpu: str | None = None


def kernel_choice() -> KernelChoice:
    """Which kernels this process uses now.

    Raises:
        ConfigError: ``WEIGHTPAGER_ISA`` names a kernel that can't run here.
    """
    chosen = kernels.isa()
    return KernelChoice(
        available=kernels.available() if is_installed("torch") else NATIVE,
        chosen=chosen,
        asked=os.environ.get("WEIGHTPAGER_ISA") or None,
        exact=kernels.exact(chosen),
        threading=kernels.thread_pool(),
        threads=_threads(),
        missing=NO_NATIVE,
        gpu=_on_gpu(),
    )


def _threads() -> int:
    if is_installed("torch"):
        import torch

        return torch.get_num_threads()
    if NATIVE:
        from weightpager.backends.native.threads import thread_count  # only where the native module has been built

        return thread_count()
    return 1


def _on_gpu() -> str | None:
    if not is_installed("torch"):
        return None
    import torch

    from weightpager.kernels.torch import isa

    return isa("cuda") if torch.cuda.is_available() else None
