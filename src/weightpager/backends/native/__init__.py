"""Graphs run by native code: no torch in the process. Owns no threads; those of the native module are the process's."""

from weightpager.backends.native.program import KVCache

__all__ = ["KVCache"]
