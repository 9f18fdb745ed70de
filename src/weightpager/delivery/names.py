"""Names of a repository's files, and what may be one: a name from metadata never becomes any other path."""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta

from weightpager.errors import ConfigError

PATTERN = r"^[a-z0-9][a-z0-9_.-]{0,63}\Z"
Name = Annotated[str, Meta(pattern=PATTERN)]
"""The name of a bundle, a version or a channel."""

METADATA, TARGETS, PACKS, OBJECTS = "metadata", "targets", "packs", "objects"
"""Folders of a repository."""


def checked_name(what: str, name: str) -> str:
    """A name that somebody has typed.

    Raises:
        ConfigError: it can't be one.
    """
    if re.match(PATTERN, name) is None:
        expected = "up to 64 small letters, digits, '-', '_' and '.', beginning with a letter or digit"
        raise ConfigError(f"{what}: expected {expected}, found {name[:80]!r}")
    return name


def version_target(name: str, version: str) -> str:
    """The target that says what a version is made of."""
    return f"{name}/versions/{version}.json"


def channel_target(name: str, channel: str) -> str:
    """The target that holds the version file of a channel's current version."""
    return f"{name}/channels/{channel}.json"


def pack_path(pack: str) -> str:
    """Where a pack's pages lie, one after the other."""
    return f"{PACKS}/{pack}.pack"


def pack_ids_path(pack: str) -> str:
    """Where the ids of a pack's pages lie, 32 bytes each."""
    return f"{PACKS}/{pack}.ids"


def object_path(digest: str) -> str:
    """Where a piece of a file lies."""
    return f"{OBJECTS}/{digest}"
