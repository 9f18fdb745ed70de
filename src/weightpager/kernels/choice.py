"""Which kernel serves on the CPU: the best that this machine has, or the one that ``WEIGHTPAGER_ISA`` names."""

from __future__ import annotations

import logging
import os
from functools import cache

from weightpager.errors import ConfigError

NATIVE: tuple[str, ...] = ()
"""The native kernels that this machine can run, best first."""

READS: frozenset[str] = frozenset()
"""The pages' dtypes that these kernels read."""

NO_NATIVE = ""
"""Why the native module isn't there; empty if it is."""

try:
    from weightpager.kernels import _native
except ImportError as error:
    NO_NATIVE = str(error)
else:
    NATIVE, READS = tuple(_native.isas()), frozenset(_native.dtypes())

REFERENCE = "reference"
"""The kernel that decides what is right, in plain torch."""

GENERIC = "generic"
"""The native kernel that any processor can run."""

_log = logging.getLogger(__name__)


def isa() -> str:
    """What a paged weight on the host is multiplied by: one of `available`.

    Raises:
        ConfigError: ``WEIGHTPAGER_ISA`` names one that can't run here.
    """
    return _choose(os.environ.get("WEIGHTPAGER_ISA", ""))


def available() -> tuple[str, ...]:
    """What ``WEIGHTPAGER_ISA`` may name on this machine, best first."""
    return (*NATIVE, REFERENCE)


def exact(name: str) -> str:
    """Which kernel serves float32 activations and weights where this one is chosen: some would round them."""
    return name if name == REFERENCE else _native.exact(NATIVE.index(name))


def thread_pool() -> str:
    """``"gomp"`` if the native kernels spread their work over torch's OpenMP threads, ``"own"`` if over their own.

    The reference kernel runs on whatever torch's own operations do, and says ``"torch"``.
    """
    return "torch" if isa() == REFERENCE else _native.threading()


@cache
def _choose(wanted: str) -> str:
    if not wanted and not NATIVE:
        # Once, since the choice is cached.
        _log.warning("the native kernels are not there (%s); the reference kernel serves, and is slow", NO_NATIVE)
    if not wanted and NATIVE[:1] == (GENERIC,):
        _log.warning("this processor has neither AVX2 nor NEON; the generic kernel serves, and is slow")
    if not wanted:
        return available()[0]
    if wanted not in available():
        raise ConfigError(f"WEIGHTPAGER_ISA: expected one of {', '.join(available())} on this machine, got {wanted!r}")
    return wanted
