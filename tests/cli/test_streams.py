"""Commands whose standard streams are closed, or unreadable, as cron jobs, daemons and nohup may start them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

INSPECT = ["inspect", "assistant.bundle"]
RUN = ["run", "assistant.bundle", "-t", "animal"]


@pytest.mark.parametrize(
    ("closed", "arguments", "refused"),
    [(">&-", INSPECT, ""), ("2>&-", INSPECT, ""), (">&- 2>&- <&-", INSPECT, ""),
     ("<&-", RUN, "error: run: expected a text as argument or on standard input"),
     ("0>/dev/null", RUN, "error: run: cannot read standard input: Bad file descriptor; give texts as arguments")],
)  # fmt: skip
def test_a_command_runs(
    assistant_bundle: Path, monkeypatch: pytest.MonkeyPatch, closed: str, arguments: list[str], refused: str
) -> None:
    monkeypatch.delenv("WEIGHTPAGER_BACKEND")  # the usual one begins ten times sooner
    places = {"assistant.bundle": str(assistant_bundle)}
    command = [sys.executable, "-m", "weightpager", *(places.get(word, word) for word in arguments)]
    shell = ["bash", "-c", f'exec "$@" {closed}', "bash", *command]
    found = subprocess.run(shell, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    assert found.returncode == (2 if refused else 0), found.stderr
    assert "Traceback" not in found.stderr
    assert refused in found.stderr
    assert ("error: " in found.stderr) == bool(refused)
