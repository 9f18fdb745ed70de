"""One model, many sparse tasks, one memory budget.

All public names but those of errors load lazily: opening or verifying a bundle needs no torch, and a device needs no
compiler.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from weightpager import errors
from weightpager.errors import (
    BudgetError,
    BundleError,
    BundleFormatError,
    BusyError,
    CompileError,
    ConfigError,
    ConflictError,
    DeliveryError,
    EngineClosedError,
    ExportFailedError,
    ImageError,
    InferenceOnlyError,
    NotExportableError,
    PageCorruptError,
    QueueFullError,
    RequestError,
    RequestTimeoutError,
    ServerClosedError,
    StoreError,
    StoreTimeoutError,
    SwitchFailedError,
    TaskNotActiveError,
    TaskTooLargeError,
    UnknownTaskError,
    UntrustedError,
    WeightpagerError,
)

if TYPE_CHECKING:
    from weightpager.answers.kinds import Prediction
    from weightpager.answers.token_reader import PicturePrompt
    from weightpager.backends.native.task import NativeTask
    from weightpager.bundle import Bundle
    from weightpager.compiler.pipeline import compile  # noqa: A004 - wp.compile is what users expect
    from weightpager.config import EngineConfig
    from weightpager.engine import (
        BundleChange,
        Engine,
        EngineReport,
        ForecastReport,
        Models,
        ResidencyMap,
        SwitchReport,
        load,
    )
    from weightpager.runtime.prediction.planner import Planner
    from weightpager.trace_file import Visit

__version__ = "0.1.0"

__all__ = [
    "BudgetError",
    "Bundle",
    "BundleChange",
    "BundleError",
    "BundleFormatError",
    "BusyError",
    "CompileError",
    "ConfigError",
    "ConflictError",
    "DeliveryError",
    "Engine",
    "EngineClosedError",
    "EngineConfig",
    "EngineReport",
    "ExportFailedError",
    "ForecastReport",
    "ImageError",
    "InferenceOnlyError",
    "Models",
    "NativeTask",
    "NotExportableError",
    "PageCorruptError",
    "PicturePrompt",
    "Planner",
    "Prediction",
    "QueueFullError",
    "RequestError",
    "RequestTimeoutError",
    "ResidencyMap",
    "ServerClosedError",
    "StoreError",
    "StoreTimeoutError",
    "SwitchFailedError",
    "SwitchReport",
    "TaskNotActiveError",
    "TaskTooLargeError",
    "UnknownTaskError",
    "UntrustedError",
    "Visit",
    "WeightpagerError",
    "compile",
    "errors",
    "load",
]

_HOMES = {
    "Bundle": "weightpager.bundle",
    "BundleChange": "weightpager.engine",
    "Engine": "weightpager.engine",
    "EngineConfig": "weightpager.config",
    "EngineReport": "weightpager.engine",
    "ForecastReport": "weightpager.engine",
    "Models": "weightpager.engine",
    "NativeTask": "weightpager.backends.native.task",
    "PicturePrompt": "weightpager.answers.token_reader",
    "Planner": "weightpager.runtime.prediction.planner",
    "Prediction": "weightpager.answers.kinds",
    "ResidencyMap": "weightpager.engine",
    "SwitchReport": "weightpager.engine",
    "Visit": "weightpager.trace_file",
    "compile": "weightpager.compiler.pipeline",
    "load": "weightpager.engine",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
