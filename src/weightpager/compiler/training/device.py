"""Where the compiler trains: on a CUDA device if there is one, else on the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn


def least_seconds(*calls: Callable[[], object], times: int) -> list[float]:
    """The least seconds that each call takes, of so many ``times``.

    The calls take turns, so that other work on the machine slows all of them. Before these turns there is one more,
    which sets things up and doesn't count.
    """
    turns = [[_seconds(call) for call in calls] for _ in range(1 + times)][1:]
    return [min(column) for column in zip(*turns, strict=True)]


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


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
class _StatedTrial:
    pays: bool | None = None


_stated = _StatedTrial()


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


@dataclass(frozen=True)
class Arithmetic:
    """How a process computes on a CPU.

    Attributes:
        threads: torch's number of threads, among which sums are split.
        bfloat16: whether matrices are multiplied in bfloat16. A trial says so, and a busy machine may answer otherwise.
        deterministic: whether torch keeps to algorithms that give the same at every run.
        precision: the precision of float32's products, as torch names it.
    """

    threads: int
    bfloat16: bool
    deterministic: bool
    precision: str

    @classmethod
    def here(cls) -> Arithmetic:
        """How this process computes."""
        return cls(
            torch.get_num_threads(),
            multiplies_in_bfloat16(torch.device("cpu")),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
        )

    def take(self) -> None:
        """Set this process, and the thread that calls, to compute in this way."""
        torch.set_num_threads(self.threads)
        torch.use_deterministic_algorithms(self.deterministic)
        torch.set_float32_matmul_precision(self.precision)
        state_bfloat16(self.bfloat16)
