"""Which Python packages are here, without importing any."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from weightpager.errors import ConfigError

TORCH = ("torch", "transformers")
"""What the extra ``torch`` brings."""


def is_installed(name: str) -> bool:
    """Whether a top-level package could be imported."""
    if name in sys.modules:
        return sys.modules[name] is not None  # None: somebody has forbidden it
    return find_spec(name) is not None


def check_installed(package: str, extra: str, purpose: str) -> None:
    """Say what is missing before a package is imported, that an ``extra`` of ours brings.

    ``purpose`` is such as "to use this command".

    Raises:
        ConfigError: the package isn't installed.
    """
    if not is_installed(package):
        raise not_installed(package, extra, purpose)


def not_installed(package: str | None, extra: str, purpose: str) -> ConfigError:
    """The error of a package that isn't installed; the arguments are those of `check_installed`."""
    return ConfigError(f"expected the package {package!r}, found none; install 'weightpager[{extra}]' {purpose}")


@contextmanager
def needing_torch(purpose: str) -> Iterator[None]:
    """A block of imports that need torch, for a purpose as in `check_installed`. Raises `ConfigError` without it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in TORCH:
            raise
        raise not_installed(error.name, "torch", purpose) from error
