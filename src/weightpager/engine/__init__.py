"""`Engine`: open a bundle, run its tasks, switch between them."""

from weightpager.engine.bundle_change import BundleChange
from weightpager.engine.engine import Engine, load
from weightpager.engine.prefetching import ForecastReport
from weightpager.engine.report import EngineReport, PrefetchReport, ResidencyMap, SwitchReport
from weightpager.runtime.rows import RowReport

__all__ = [
    "BundleChange",
    "Engine",
    "EngineReport",
    "ForecastReport",
    "PrefetchReport",
    "ResidencyMap",
    "RowReport",
    "SwitchReport",
    "load",
]
