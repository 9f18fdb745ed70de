"""Standard streams of the process."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper


def settle_streams() -> None:
    """Give closed streams the null device, and have standard output escape what it can't show.

    Cron jobs and daemons may start a command with closed streams. Python has None for these, and the next file that is
    opened would get their numbers, and with them what a library prints.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - open as long as the process is
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdout, TextIOWrapper):  # as for standard error: a name that it can't show must not end a command
        sys.stdout.reconfigure(errors="backslashreplace")
