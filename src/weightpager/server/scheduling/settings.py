"""A server's settings. They are parsed once and frozen; contradictory ones are refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from weightpager.config import LONGEST
from weightpager.errors import ConfigError
from weightpager.server.scheduling.policy import Policy

_MAKE_ONE = "'(umask 077; openssl rand -hex 32 > FILE)' makes one"


@dataclass(frozen=True)
class Settings:
    """A server's settings.

    Attributes:
        policy: which task runs next, and how much of it at once.
        queue: texts that may wait; more are refused.
        timeout: seconds after which a request is given up, whether it waits or runs.
        grace: seconds that requests have to finish once the server is told to end.
        most_new_tokens: that a request may ask for.
        most_text_tokens: that a text may have; None for what `default_limit` says.
        body_bytes: of the largest request body.
        token: that requests must bring; None asks for none. Never printed.
        admin_token: that the admin's requests must bring; None makes no admin routes. Never printed.
        remote_admin: whether the admin may come from another machine.
    """

    policy: Policy = field(default_factory=Policy)
    queue: int = 256
    timeout: float = 120.0
    grace: float = 20.0
    most_new_tokens: int = 1024
    most_text_tokens: int | None = None
    body_bytes: int = 2**20
    token: str | None = field(default=None, repr=False)
    admin_token: str | None = field(default=None, repr=False)
    remote_admin: bool = False

    def __post_init__(self) -> None:
        for name in ("queue", "most_new_tokens", "body_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        if self.most_text_tokens is not None and self.most_text_tokens < 1:
            raise ConfigError(f"most_text_tokens: expected 1 or more, got {self.most_text_tokens}")
        if not 0 < self.timeout <= LONGEST:
            raise ConfigError(f"timeout: expected a number of seconds over 0 and up to {LONGEST:g}, got {self.timeout}")
        if not 0 <= self.grace <= LONGEST:
            raise ConfigError(f"grace: expected a number of seconds from 0 to {LONGEST:g}, got {self.grace}")
        if self.token is not None and self.token == self.admin_token:
            raise ConfigError("tokens: expected two that differ, got the same for users and the admin")
        if self.remote_admin and self.admin_token is None:
            raise ConfigError("remote admin: expected an admin token, got none")


def read_token(path: Path | None) -> str | None:
    """The token in a file, without blanks around it; None if there is no path.

    Raises:
        ConfigError: there is no such file, or it holds no token of 16 to 512 printable ASCII characters.
    """
    if path is None:
        return None
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        found = error.strerror if isinstance(error, OSError) else "characters that aren't ASCII"
        raise ConfigError(f"{path}: expected a readable file with a token, found: {found}; {_MAKE_ONE}") from error
    if not 16 <= len(text) <= 512 or not text.isprintable() or " " in text:
        raise ConfigError(
            f"{path}: expected a token of 16 to 512 characters without blanks, got {len(text)}; {_MAKE_ONE}"
        )
    return text
