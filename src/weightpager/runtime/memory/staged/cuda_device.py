"""The CUDA devices of this machine, as arenas are made on them."""

from __future__ import annotations

import torch

from weightpager.errors import ConfigError
from weightpager.runtime.memory.staged.cuda_copier import CudaCopier
from weightpager.runtime.memory.staged.staged_arena import Staging
from weightpager.store import most_pages

_STAGING_BYTES = 8 << 20
"""More buffers than fill this aren't used, however many reads there may be in flight."""


def cuda_staging(device: str, page_bytes: int, reads: int) -> Staging:
    """See `weightpager.runtime.memory.device.staging`."""
    _check(device)
    longest = most_pages(page_bytes) * page_bytes
    return Staging(CudaCopier(_numbered(device)), max(1, min(reads, _STAGING_BYTES // longest)))


def _numbered(device: str) -> torch.device:
    stated = torch.device(device)
    return stated if stated.index is not None else torch.device("cuda", torch.cuda.current_device())


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
