"""Where an arena lies: chosen here and nowhere else."""

from __future__ import annotations

from weightpager.machine.packages import needing_torch
from weightpager.runtime.memory.page_arena import ArenaSource


def staging(device: str, page_bytes: int, reads: int) -> ArenaSource | None:
    """How pages get into the arena of a device; None if it is host memory, and pages are read straight into it.

    A GPU that shares the host's memory (``is_integrated``) is treated as one with memory of its own: an arena that both
    address would need no copy, and isn't done yet.

    Args:
        device: "cpu", "cuda" or "cuda:N".
        page_bytes: bytes of a page.
        reads: how many may be in flight.

    Raises:
        ConfigError: there is no such device, or torch isn't installed.
    """
    if device == "cpu":
        return None
    with needing_torch(f"for the device {device!r}, or use the device 'cpu'"):
        from weightpager.runtime.memory.staged.cuda_device import cuda_staging
    return cuda_staging(device, page_bytes, reads)
