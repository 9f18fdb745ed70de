"""What tasks of each kind read, answer and are measured by: a file for each kind, named like it, with its `KIND`."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from weightpager.answers.kinds.kind import Kind
from weightpager.bundle import TaskKind


@cache
def kind_of(name: TaskKind) -> Kind:
    """The one object of a kind."""
    found: Kind = import_module(f"{__name__}.{name.replace('-', '_')}").KIND
    return found
