"""The ``weightpager`` command."""

from weightpager.cli.app import main

__all__ = ["main"]
