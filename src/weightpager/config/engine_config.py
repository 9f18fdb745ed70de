"""How an engine runs."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from weightpager.errors import ConfigError

BACKENDS = ("auto", "native", "torch")
"""What may run tasks."""


def check_backend(name: str, where: str = "backend") -> None:
    """See that a backend is one that may be asked for.

    Raises:
        ConfigError: it isn't; says where it was named.
    """
    if name not in BACKENDS:
        raise ConfigError(f"{where}: expected one of {', '.join(BACKENDS)}, got {name!r}")


@dataclass(frozen=True)
class EngineConfig:
    """How an engine runs.

    Attributes:
        budget: bytes for weights in memory: arena, resident and private parameters, block tables, KV reserve, and
            staging on a GPU. None takes what the whole bundle needs.
        device: where the arena lives and tasks run: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``. Whether it is there is found
            out when an engine opens.
        dtype: what tasks compute in: ``"bfloat16"``, or ``"auto"`` for what the bundle's parameters are in.
        io_threads: reads in flight while pages are loaded.
        kv_reserve: bytes of the budget that are left to KV caches.
        rows: bytes of the budget for rows of tables that come on demand; None for what all pages leave.
        real_time: tasks that are loaded when the engine opens, before any other, and never leave memory.
        read_timeout: seconds without any page after which a load fails.
        prefetch: whether to prefetch what the next task probably needs; or a `Planner`, a function that tells the next
            task from the visits so far, by name with a weight each.
        history: file that keeps which task ran when, across restarts; None keeps it in memory only.
        backend: what runs tasks: ``"native"``, ``"torch"``, or ``"auto"`` for what ``WEIGHTPAGER_BACKEND`` names, or
            what suits where that isn't set.
    """

    budget: int | None = None
    device: str = "cpu"
    dtype: str = "auto"
    io_threads: int = 8
    kv_reserve: int = 0
    rows: int | None = None
    real_time: tuple[str, ...] = ()
    read_timeout: float = 30.0
    prefetch: bool | Callable[..., Mapping[str, float]] = False
    history: Path | None = None
    backend: str = "auto"

    def __post_init__(self) -> None:
        check_backend(self.backend)
        if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", self.device):
            raise ConfigError(f"device: expected 'cpu', 'cuda' or 'cuda:N', got {self.device!r}")
        if self.dtype not in ("auto", "bfloat16"):
            raise ConfigError(f"dtype: expected 'auto' or 'bfloat16', got {self.dtype!r}")
        if self.budget is not None and self.budget <= 0:
            raise ConfigError(f"budget: expected more than zero bytes, got {self.budget}")
        if not 1 <= self.io_threads <= 64:
            raise ConfigError(f"io_threads: expected 1 to 64, got {self.io_threads}")
        if self.kv_reserve < 0:
            raise ConfigError(f"kv_reserve: expected zero bytes or more, got {self.kv_reserve}")
        if self.rows is not None and self.rows <= 0:
            raise ConfigError(f"rows: expected more than zero bytes, got {self.rows}")
        if not 0 < self.read_timeout <= threading.TIMEOUT_MAX:
            raise ConfigError(f"read_timeout: expected a number of seconds above zero, got {self.read_timeout}")
        if not (isinstance(self.prefetch, bool) or callable(self.prefetch)):
            raise ConfigError(f"prefetch: expected True, False or a function, got {type(self.prefetch).__name__}")
