"""Sequences of task switches to try prediction on: made ones with a known entropy, and a real log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from weightpager_lab.traces.drive import drive
from weightpager_lab.traces.made import adversarial, assistant, robot
from weightpager_lab.traces.mail import mail
from weightpager_lab.traces.trace import Trace, random

__all__ = ["TRACES", "Trace", "TraceMaker"]


class TraceMaker(Protocol):
    """Makes a trace: the same one from the same arguments."""

    def __call__(self, switches: int, dwell: float = 1.0, seed: int = 0) -> Trace:
        """A trace.

        Args:
            switches: visits less one; a real log may have fewer.
            dwell: mean length of a visit in seconds.
            seed: of the draws.

        Raises:
            ConfigError: there is no switch, or no time between them.
            SampleUnavailable: a real log cannot be fetched.
        """
        ...


TRACES: Mapping[str, TraceMaker] = {
    "assistant": assistant,
    "drive": drive,
    "robot": robot,
    "mail": mail,
    "random": random,
    "adversarial": adversarial,
}
"""By name; all but `mail` are made up. A new one is a file of its own and a line here."""
