"""Compiling and serving on a Ray cluster: never on a device. Ray is imported here alone, and by nothing below."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightpager.ray.application import app

__all__ = ["app"]


def __getattr__(name: str) -> Any:  # compiling doesn't need what serving does
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from weightpager.ray.application import app

    return app
