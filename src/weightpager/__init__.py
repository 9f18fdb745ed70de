"""One model, many sparse tasks, one memory budget.

The public names load lazily: opening or verifying a bundle needs no torch, and a device needs no compiler.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightpager.bundle import Bundle
    from weightpager.compiler.pipeline import compile  # noqa: A004 - wp.compile is what users expect
    from weightpager.engine import Engine, EngineReport, SwitchReport

__version__ = "0.1.0"

__all__ = ["Bundle", "Engine", "EngineReport", "SwitchReport", "compile"]

_HOMES = {
    "Bundle": "weightpager.bundle",
    "Engine": "weightpager.engine",
    "EngineReport": "weightpager.engine",
    "SwitchReport": "weightpager.engine",
    "compile": "weightpager.compiler.pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
