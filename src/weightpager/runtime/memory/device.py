"""Where an arena lies: chosen here and nowhere else."""

from __future__ import annotations

import torch

from weightpager.errors import ConfigError
from weightpager.runtime.memory.cuda_copier import CudaCopier
from weightpager.runtime.memory.staged_arena import Staging
from weightpager.store import most_pages

_STAGING_BYTES = 8 << 20
"""More buffers than fill this aren't used, however many reads there may be in flight."""


def staging(device: str, page_bytes: int, reads: int) -> Staging | None:
    """How pages get into the arena of a device; None if it is host memory, and pages are read straight into it.

    A GPU that shares the host's memory (``is_integrated``) is treated as one with memory of its own: an arena that both
    address would need no copy, and isn't done yet.

    Args:
        device: "cpu", "cuda" or "cuda:N".
        page_bytes: bytes of a page.
        reads: that may be in flight.

    Raises:
        ConfigError: there is no such device.
    """
    if device == "cpu":
        return None
    _check(device)
    longest = most_pages(page_bytes) * page_bytes
    return Staging(CudaCopier(_numbered(device)), max(1, min(reads, _STAGING_BYTES // longest)))


def _numbered(device: str) -> torch.device:
    found = torch.device(device)
    return found if found.index is not None else torch.device("cuda", torch.cuda.current_device())


def _check(device: str) -> None:
    if torch.version.cuda is None:
        found = f"torch {torch.__version__}, which is built without CUDA"
    elif not torch.cuda.is_available():
        found = f"torch {torch.__version__}, which sees no CUDA device"
    elif (torch.device(device).index or 0) >= torch.cuda.device_count():
        found = f"devices cuda:0 to cuda:{torch.cuda.device_count() - 1}"
    else:
        return
    raise ConfigError(f"device: expected 'cpu' or a CUDA device of this machine, got {device!r} and found {found}")
