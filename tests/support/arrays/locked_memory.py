"""Memory that the process has locked, as robots do with all of theirs."""

from __future__ import annotations

import ctypes
import os

import numpy as np
import numpy.typing as npt
import pytest

_libc = ctypes.CDLL(None, use_errno=True)


def lock(array: npt.NDArray[np.generic]) -> None:
    """Lock the memory of an array until it is unmapped. Skips the test where the machine refuses that."""
    if _libc.mlock(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)):
        pytest.skip(f"memory can't be locked here: {os.strerror(ctypes.get_errno())}")
