"""Where the compiler trains: on a CUDA device if there is one, else on the CPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from weightpager.compiler.training.trial import least_seconds


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
    """Matrix products in bfloat16 where that is faster."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=multiplies_in_bfloat16(device))


def multiplies_in_bfloat16(device: torch.device) -> bool:
    """Whether that is faster: on GPUs that have it, and on CPUs where a trial says so."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return _bfloat16_pays() if _stated.pays is None else _stated.pays


def state_bfloat16(pays: bool) -> None:
    """State for this process what a trial has found in the one that it works for."""
    _stated.pays = pays


@dataclass
class _Stated:
    pays: bool | None = None


_stated = _Stated()


@cache
def _bfloat16_pays() -> bool:
    """Whether this CPU multiplies matrices clearly faster in bfloat16.

    The instruction set doesn't tell: AMX makes it several times as fast, AVX-512 twice as fast on one CPU (6 ms
    against 13) and half as fast on another (14.5 ms against 7.4). Where the processor has no instruction for it, few
    rows tell: it is five times as slow, and a trial of many would take three seconds.
    """
    single, half = _trial(rows=64, times=3)
    if half > _HOPELESS * single:
        return False
    single, half = _trial(rows=2048, times=7)
    return half < 0.75 * single


_HOPELESS = 3.0
"""So many times as slow with few rows is too slow with many."""


def _trial(rows: int, times: int) -> list[float]:
    """The least seconds of a product in float32 and in bfloat16."""
    values, weight = torch.ones(rows, 384), torch.ones(1536, 384)
    low_values, low_weight = values.bfloat16(), weight.bfloat16()
    return least_seconds(lambda: values @ weight.T, lambda: low_values @ low_weight.T, times=times)
