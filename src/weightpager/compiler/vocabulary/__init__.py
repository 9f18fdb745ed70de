"""A smaller vocabulary for a decoder whose tasks are narrow."""

from weightpager.compiler.vocabulary.trim import Trimmed, TrimmedTask, trim

__all__ = ["Trimmed", "TrimmedTask", "trim"]
