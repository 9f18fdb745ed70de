"""Text in YAML."""

from __future__ import annotations

import json

from weightpager.errors import ConfigError


def quoted(path: str) -> str:
    """A path as a YAML string. JSON's escapes won't do: YAML has no surrogate pairs, and folds more line breaks.

    Raises:
        ConfigError: it isn't Unicode.
    """
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"model: expected a path of Unicode text, found {path!r}; rename it") from error
    text = json.dumps(path, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in text)
