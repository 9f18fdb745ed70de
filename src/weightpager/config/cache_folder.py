"""The user's cache: where it lies, and how large it may be."""

from __future__ import annotations

import os
from pathlib import Path

from weightpager.config.sizes import parse_size
from weightpager.errors import ConfigError

_CACHE_LIMIT = 8 << 30


def cache_dir() -> Path:
    """Where downloads, demo results and what compiles share lie: ``WEIGHTPAGER_CACHE``, else XDG's cache folder.

    Raises:
        ConfigError: it is in a home directory that isn't known.
    """
    stated = os.environ.get("WEIGHTPAGER_CACHE")
    try:
        if stated:
            return Path(stated).expanduser()
        return (xdg_folder("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "weightpager"
    except RuntimeError as error:
        found = f"found no home directory for {stated or '~/.cache'}; name one that begins with '/'"
        raise ConfigError(f"WEIGHTPAGER_CACHE: expected a directory, {found}") from error


def xdg_folder(variable: str) -> Path | None:
    """The folder that a variable of XDG's names; None where it names none. A relative one counts as none, says XDG."""
    folder = Path(os.environ.get(variable, ""))
    return folder if folder.is_absolute() else None


def cache_limit() -> int:
    """Bytes that compiles may keep in `cache_dir`: ``WEIGHTPAGER_CACHE_LIMIT``, where 0 is none; else 8 GiB.

    Raises:
        ConfigError: the variable is no size.
    """
    stated = (os.environ.get("WEIGHTPAGER_CACHE_LIMIT") or "").strip()
    if stated == "0":
        return 0
    try:
        return parse_size(stated) if stated else _CACHE_LIMIT
    except ConfigError as error:
        raise ConfigError(f"WEIGHTPAGER_CACHE_LIMIT: {error}, or 0 to keep nothing") from None
