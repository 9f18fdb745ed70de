"""How good forecasts have been."""

from __future__ import annotations

import math

from weightpager.runtime.prediction.predictor import Forecast

LEAST_CHANCE = 2.0**-20
"""A lower probability of what came counts as this one, which costs 20 bits."""


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
        """Score a forecast by the task that came. If it said nothing, all other tasks count as equally likely."""
        chance = float(forecast.next[came]) if forecast.next.any() else 1.0 / max(1, len(forecast.next) - 1)
        self.forecasts += 1
        self.hits += forecast.likeliest == came
        self.bits -= math.log2(max(chance, LEAST_CHANCE))

    @property
    def log_loss(self) -> float:
        """Mean bits per forecast; 0 before the first."""
        return self.bits / max(1, self.forecasts)

    @property
    def hit_rate(self) -> float:
        """Share of the forecasts whose likeliest task came; 0 before the first."""
        return self.hits / max(1, self.forecasts)
