"""One model, many sparse tasks, one memory budget.

The public names load lazily: opening or verifying a bundle needs no torch, and a device needs no compiler.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightpager.answers.kinds.kind import Prediction
    from weightpager.backends.native.task import NativeTask
    from weightpager.bundle import Bundle
    from weightpager.compiler.pipeline import compile  # noqa: A004 - wp.compile is what users expect
    from weightpager.config import EngineConfig
    from weightpager.engine import BundleChange, Engine, EngineReport, ForecastReport, ResidencyMap, SwitchReport
    from weightpager.runtime.prediction.planner import Planner
    from weightpager.trace_file import Visit

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "BundleChange",
    "Engine",
    "EngineConfig",
    "EngineReport",
    "ForecastReport",
    "NativeTask",
    "Planner",
    "Prediction",
    "ResidencyMap",
    "SwitchReport",
    "Visit",
    "compile",
]

_HOMES = {
    "Bundle": "weightpager.bundle",
    "BundleChange": "weightpager.engine",
    "Engine": "weightpager.engine",
    "EngineConfig": "weightpager.config",
    "EngineReport": "weightpager.engine",
    "ForecastReport": "weightpager.engine",
    "NativeTask": "weightpager.backends.native.task",
    "Planner": "weightpager.runtime.prediction.planner",
    "Prediction": "weightpager.answers.kinds.kind",
    "ResidencyMap": "weightpager.engine",
    "SwitchReport": "weightpager.engine",
    "Visit": "weightpager.trace_file",
    "compile": "weightpager.compiler.pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
