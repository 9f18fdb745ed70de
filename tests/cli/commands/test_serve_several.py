"""`weightpager serve` of several bundles, or of a folder, as people type it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from command import Command
from waiting import until
from weightpager.bundle.garbage import collect


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--budget", "1KiB"], 1, "the smallest that would do is"),
        (["--rows", "1MiB"], 2, "--rows: expected it with one bundle that stays in memory"),
        (["--device", "cuda"], 2, "--device: expected it with one bundle that stays in memory"),
        (["--replicas", "2"], 2, "--replicas: expected one bundle without --idle"),
        (["--real-time", "wether"], 2, "real_time: expected names such as assistant/TASK, got 'wether'"),
        (["--idle", "soon"], 2, "--idle: expected"),
    ],
)
def test_what_several_bundles_cannot_have_is_refused(
    weightpager: Command, assistant_bundle: Path, writer_bundle: Path, options: list[str], code: int, words: str
) -> None:
    found = weightpager("serve", assistant_bundle, writer_bundle, "--port", "0", *options)
    assert found.code == code
    assert words in found.err
    assert "Traceback" not in found.err


def test_two_bundles_of_one_name_are_refused(weightpager: Command, assistant_bundle: Path, tmp_path: Path) -> None:
    again = tmp_path / assistant_bundle.name
    again.symlink_to(assistant_bundle)
    found = weightpager("serve", assistant_bundle, again, "--port", "0")
    assert found.code == 2
    assert "found two of 'assistant'; rename a directory" in found.err


def test_a_folder_without_bundles_is_refused(weightpager: Command, tmp_path: Path) -> None:
    found = weightpager("serve", tmp_path, "--port", "0")
    assert found.code == 2
    assert "expected a bundle, or a folder with one at least, found none" in found.err


@contextmanager
def started(*words: object) -> Iterator[httpx.Client]:
    """A server in a process of its own, and what asks it."""
    command = [sys.executable, "-m", "weightpager", "serve", *map(str, words), "--port", "0", "--log-level", "warning"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[0]
            with httpx.Client(base_url=url, timeout=60) as client:
                yield client
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=60)
    assert server.returncode in {0, -signal.SIGTERM}


def label(client: httpx.Client, task: str) -> str:
    answer = client.post("/v1/classifications", json={"model": task, "input": "a red car"})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["data"][0]["label"])


def awake(client: httpx.Client) -> dict[str, bool]:
    return {model["id"]: model["awake"] for model in client.get("/v1/models").json()["data"]}


@pytest.mark.slow
def test_one_that_nobody_asks_leaves_memory(
    assistant_bundle: Path, writer_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WEIGHTPAGER_BACKEND")  # the usual one begins ten times sooner
    with started(assistant_bundle, writer_bundle, "--idle", "1s") as client:
        first = label(client, "weather")
        assert awake(client)["assistant/weather"]
        until(lambda: not any(awake(client).values()))
        assert label(client, "assistant/weather") == first


@pytest.mark.slow
def test_a_folder_that_pull_fills_is_served(
    weightpager: Command,
    assistant_bundle: Path,
    writer_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WEIGHTPAGER_BACKEND")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(assistant_bundle, "assistant.bundle")
    shutil.copytree(writer_bundle, "bundles/writer.bundle")
    assert weightpager("publish", "init", "repository").code == 0
    assert weightpager("publish", "assistant.bundle", "repository").code == 0
    with started("bundles", "--budget", "4MiB") as client:
        written = set(awake(client))
        pull = ("pull", "repository", "assistant", "--into", "bundles")
        assert weightpager(*pull, "--trust", "repository/metadata/1.root.json").code == 0
        until(lambda: "assistant/weather" in awake(client))
        first = label(client, "weather")
        other = next(name for name in awake(client) if name not in written | {"assistant/weather"})
        before = label(client, other)
        collect("assistant.bundle", drop=["weather"])
        assert weightpager("publish", "assistant.bundle", "repository").code == 0
        assert weightpager(*pull).code == 0
        until(lambda: "assistant/weather" not in awake(client))
        assert label(client, other) == before
        assert "assistant 1 is in use" in weightpager("rollback", "assistant", "--into", "bundles").out
        until(lambda: "assistant/weather" in awake(client))
        assert label(client, "weather") == first
