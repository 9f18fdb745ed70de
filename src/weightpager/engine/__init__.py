"""`Engine`: open a bundle, run its tasks, switch between them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightpager.engine.bundle_change import BundleChange
    from weightpager.engine.engine import Engine, load
    from weightpager.engine.forecasts import ForecastReport
    from weightpager.engine.models import Models
    from weightpager.engine.report import EngineReport, PrefetchReport, ResidencyMap, SwitchReport
    from weightpager.runtime.row_report import RowReport

__all__ = [
    "BundleChange",
    "Engine",
    "EngineReport",
    "ForecastReport",
    "Models",
    "PrefetchReport",
    "ResidencyMap",
    "RowReport",
    "SwitchReport",
    "load",
]

_HOMES = {
    "BundleChange": "bundle_change",
    "Engine": "engine",
    "ForecastReport": "forecasts",
    "Models": "models",
    "load": "engine",
}


def __getattr__(name: str) -> Any:  # who reads a server's state needs reports, and no engine
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'report')}"), name)
