"""How many servers there should be: as many as keep each of them busy, and no queue long."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray.serve.config import AutoscalingContext

from weightpager.errors import ConfigError


@dataclass(frozen=True)
class Load:
    """What is aimed at.

    Attributes:
        busy: the share of the time that a server computes.
        waiting: number of texts that wait for their turn, per server.
    """

    busy: float = 0.7
    waiting: float = 8.0

    def __post_init__(self) -> None:
        if not 0 < self.busy <= 1:
            raise ConfigError(f"busy: expected a share above 0, at most 1, got {self.busy}")
        if not (math.isfinite(self.waiting) and self.waiting > 0):
            raise ConfigError(f"waiting: expected a number above 0, got {self.waiting}")


def wanted(busy: Sequence[float], waiting: Sequence[float], aim: Load) -> int:
    """Servers that would carry the load, at least one.

    The larger of two numbers: Σ busy / aim, which makes up for servers that compute all the time or hardly ever; and
    Σ waiting / aim, as the first one says nothing of how much waits for servers that are busy all the time.

    Args:
        busy: of each server there is, the share of the time that it computed.
        waiting: of each, the texts that waited.
        aim: for each.
    """
    return max(1, math.ceil(sum(busy) / aim.busy - 1e-9), math.ceil(sum(waiting) / aim.waiting - 1e-9))


def policy(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """`wanted`, as Serve asks for it; bounds and delays are Serve's own."""
    metrics = context.aggregated_metrics or {}
    busy, waiting = metrics.get("busy", {}), metrics.get("waiting", {})
    if not busy:
        return context.target_num_replicas, {}
    return wanted(list(busy.values()), list(waiting.values()), Load()), {}
