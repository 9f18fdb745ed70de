"""Where the compiler trains: on a CUDA device if there is one, else on the CPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import nn

_CPU_FLAGS = Path("/proc/cpuinfo")


def training_device() -> torch.device:
    """The device to train on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def placed(models: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """Modules on a device, and back on the CPU afterwards. Their parameters stay the same objects."""
    models = list(models)
    try:
        for model in models:
            model.to(device)
        yield
    finally:
        for model in models:
            model.cpu()


def autocast(device: torch.device) -> AbstractContextManager[None]:
    """Matrix products in bfloat16 where the processor has instructions for it; elsewhere it is slower than float32."""
    fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else _has_bfloat16()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast)


@cache
def _has_bfloat16() -> bool:
    if not _CPU_FLAGS.is_file():
        return False
    flags = _CPU_FLAGS.read_text().split()
    return "avx512_bf16" in flags or "amx_bf16" in flags
