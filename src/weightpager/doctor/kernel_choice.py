"""Which kernels this machine can run, which one serves, and why."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from weightpager import kernels
from weightpager.kernels.choice import NO_NATIVE
from weightpager.kernels.torch import isa

REFERENCE = "reference"


@dataclass(frozen=True)
class KernelChoice:
    """What `weightpager.kernels.torch.paged_linear` runs on in this process.

    Attributes:
        available: kernels that can run here, best first.
        chosen: the one that serves.
        asked: what ``WEIGHTPAGER_ISA`` names; None if it doesn't.
        exact: the one that serves float32 activations and weights.
        threading: ``"gomp"``, ``"own"`` or, for the reference, ``"torch"``.
        threads: of torch, which the kernels spread their work over.
        missing: why the native kernels are not there; empty if they are.
        gpu: the one that serves on a GPU; None where torch sees none.
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
        available=kernels.available(),
        chosen=chosen,
        asked=os.environ.get("WEIGHTPAGER_ISA") or None,
        exact=kernels.exact(chosen),
        threading=kernels.threading(),
        threads=torch.get_num_threads(),
        missing=NO_NATIVE,
        gpu=isa("cuda") if torch.cuda.is_available() else None,
    )
