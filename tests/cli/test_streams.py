"""Commands whose standard streams are closed, as cron jobs and daemons may start them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

INSPECT = ["inspect", "assistant.bundle"]


@pytest.mark.parametrize(
    ("closed", "arguments", "code"),
    [(">&-", INSPECT, 0), ("2>&-", INSPECT, 0), (">&- 2>&- <&-", INSPECT, 0),
     ("<&-", ["run", "assistant.bundle", "-t", "animal"], 2)],
)  # fmt: skip
def test_a_command_runs(assistant_bundle: Path, closed: str, arguments: list[str], code: int) -> None:
    places = {"assistant.bundle": str(assistant_bundle)}
    command = [sys.executable, "-m", "weightpager", *(places.get(word, word) for word in arguments)]
    shell = ["bash", "-c", f'exec "$@" {closed}', "bash", *command]
    found = subprocess.run(shell, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    assert found.returncode == code, found.stderr
    assert "Traceback" not in found.stderr
    assert ("error: run: expected a text" in found.stderr) == (code == 2)
