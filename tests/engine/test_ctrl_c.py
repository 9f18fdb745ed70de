"""Ctrl-C at any moment: answers stay right, nothing stays held or open, and nobody waits for ever."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import interrupted
import tiny
import weightpager as wp
from interrupted import Trial, at_steps, stepped
from repetitions import times


@pytest.mark.parametrize("work", ["activate", "task", "predict"])
@stepped
def test_whichever_step_is_interrupted_nothing_stays_held(
    assistant_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    monkeypatch.setenv("WEIGHTPAGER_BACKEND", "native")
    trial, kept = Trial(assistant_bundle, tmp_path), []
    try:
        at_steps(trial, 151, [work], kept)
    finally:
        trial.end(kept)


def run(*arguments: object, backend: str = "native") -> None:
    """In a process of its own, which ends itself with all threads' tracebacks should it hang."""
    environment = {**os.environ, "WEIGHTPAGER_BACKEND": backend, "HANGS_AFTER": "800"}
    command = [sys.executable, interrupted.__file__, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("how", ["moments", "threads"])
def test_many_interruptions_at_random_moments(assistant_bundle: Path, how: str) -> None:
    run(how, times(2000), assistant_bundle)


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_interruptions_of_texts_that_grow(tmp_path: Path) -> None:
    wp.compile(tiny.clerk(tmp_path), out=tmp_path / "clerk.bundle")  # one of its tasks reads conversations
    run("moments", times(600), tmp_path / "clerk.bundle")


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_interruptions_of_torch(assistant_bundle: Path) -> None:
    run("moments", times(300), assistant_bundle, backend="torch")


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize(
    ("every", "works"),
    [
        (5, ["activate", "activate at once", "task", "task at once", "pin", "predict", "set_budget"]),
        (97, ["reload"]),
        (307, ["open"]),
    ],
)
@stepped
def test_interruptions_of_every_step(assistant_bundle: Path, every: int, works: list[str]) -> None:
    run("steps", every, assistant_bundle, *works)
