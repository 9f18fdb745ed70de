"""Graphs run by native code: no torch in the process. Owns no threads; those of the native module are the process's."""

from weightpager.backends.native.lowering import Array, Blocks, ProgramParameter
from weightpager.backends.native.program import KVCache, Program, Workspaces, thread_count

__all__ = [
    "Array",
    "Blocks",
    "KVCache",
    "Program",
    "ProgramParameter",
    "Workspaces",
    "thread_count",
]
