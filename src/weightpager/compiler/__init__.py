"""Model + tasks → bundle."""

from weightpager.compiler.pipeline import compile  # noqa: A004 - wp.compile is what users expect

__all__ = ["compile"]
