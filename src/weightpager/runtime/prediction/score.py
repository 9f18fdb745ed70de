"""How good forecasts have been, by what came."""

from __future__ import annotations

import math

from weightpager.runtime.prediction.predictor import Forecast

LEAST_CHANCE = 2.0**-20
"""A task that was said to be rarer costs no more than this one: 20 bits."""


class PredictionScore:
    """Log loss and hits of forecasts.

    Attributes:
        forecasts: how many were scored.
        hits: how often the likeliest task came.
        bits: sum of ``-log2 P(what came)``.
    """

    def __init__(self) -> None:
        self.forecasts = 0
        self.hits = 0
        self.bits = 0.0

    def add(self, forecast: Forecast, came: int) -> None:
        """A forecast was made, and then this task came. Where nothing was said, all others count as equally likely."""
        chance = float(forecast.next[came]) if forecast.next.any() else 1.0 / max(1, len(forecast.next) - 1)
        bits = -math.log2(max(chance, LEAST_CHANCE))
        hit = forecast.likeliest == came
        self.forecasts += 1
        self.hits += hit
        self.bits += bits

    @property
    def log_loss(self) -> float:
        """Mean bits per forecast; 0 before the first."""
        return self.bits / max(1, self.forecasts)

    @property
    def hit_rate(self) -> float:
        """Share of the forecasts whose likeliest task came; 0 before the first."""
        return self.hits / max(1, self.forecasts)
