"""Requests that mean no good."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import hypothesis
import pytest
import requests
from hypothesis import HealthCheck, Phase, given
from hypothesis.errors import Unsatisfiable

import weightpager as wp
from running import ADMIN, Running, serving
from weightpager.runtime.prediction.history import DELAY
from weightpager.server.presence import running as running_servers
from weightpager.server.scheduling.settings import Settings

if TYPE_CHECKING:
    from schemathesis import APIOperation, Case, GenerationMode


def status_of(running: Running, data: bytes) -> int:
    with running.raw(data) as connection:
        connection.settimeout(20)
        return int(connection.recv(64).split()[1])


def test_a_large_body_is_refused(assistant: Running) -> None:
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    assert status_of(assistant, head + b"Content-Length: 99999999999\r\n\r\n") == 413
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    assert status_of(assistant, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 2 + b"0\r\n\r\n") == 413


def test_large_headers_are_refused(assistant: Running) -> None:
    assert status_of(assistant, b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 70_000) == 400


def test_a_body_that_never_ends_holds_nothing(assistant: Running) -> None:
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    with assistant.raw(head):
        assert assistant.openai.embeddings.create(model="weather", input="sun").data
        assert not assistant.service.queue.waiting()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"model": "weather", "input": "\\ud800"}',
        b'{"model": "\\ud800", "input": "sun"}',
        b'{"model": "weather", "input": "\xff"}',
        b'{"model": "../weather", "input": "sun", "x": NaN}',
        b'{"model": "weather", "input": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"model": "weather", "input": [1e999]}',
        b'{"model": "weather", "input": [99999999999999999999999]}',
        b'{"model": "weather", "input": []}',
        b'{"model": "weather", "input": [[]]}',
        b'{"model": "weather", "input": ["a", [1]]}',
    ],
)
def test_a_senseless_body_is_the_clients_mistake(assistant: Running, body: bytes) -> None:
    with assistant.http() as client:
        for route in ("embeddings", "classifications", "chat/completions", "completions"):
            answer = client.post(f"/v1/{route}", content=body, headers={"Content-Type": "application/json"})
            assert 400 <= answer.status_code < 500, answer.text
            assert answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/../../etc/passwd", "/v1/models/..%2f..%2fetc%2fpasswd", "/%00", "/v1/models/%ff"])
def test_no_path_leads_out(assistant: Running, path: str) -> None:
    answer = status_of(assistant, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert answer in {400, 404}


def described(running: Running) -> dict[str, Any]:
    """The OpenAPI description, with the names of tasks where one is asked for: others would only be not found."""
    with running.http() as client:
        found: dict[str, Any] = client.get("/openapi.json").json()
    for schema in found["components"]["schemas"].values():
        for field in {"model", "task"} & schema.get("properties", {}).keys():
            schema["properties"][field] = {"type": "string", "enum": list(running.service.engine.bundle.tasks)}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize("name", ["assistant_bundle", "writer_bundle"])
def test_nothing_in_the_description_makes_the_server_fail(request: pytest.FixtureRequest, name: str, mode: str) -> None:
    import schemathesis  # only here: it takes seconds

    with serving(request.getfixturevalue(name), Settings(admin_token=ADMIN, most_new_tokens=8)) as running:
        schema = schemathesis.openapi.from_dict(described(running))
        for found in schema.get_all_operations():
            attack(found.ok(), running, schemathesis.GenerationMode(mode))
            running.until_idle()


def attack(operation: APIOperation[Any, Any], running: Running, mode: GenerationMode) -> None:
    with requests.Session() as session:
        session.trust_env = False

        @given(operation.as_strategy(generation_mode=mode))
        @hypothesis.settings(max_examples=20, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
        def attacked(case: Case) -> None:
            answer = case.call(running.url, session, headers={"Authorization": f"Bearer {ADMIN}"})
            assert answer.status_code < 500, answer.content

        try:
            attacked()
        except Unsatisfiable:
            assert mode == "negative"  # a route without anything to get wrong


def test_a_body_that_is_not_said_to_be_json_is_refused(assistant: Running) -> None:
    with assistant.http() as client:
        for headers, found in (({"Content-Type": "text/plain"}, "text/plain"), ({}, "none")):
            answer = client.post("/v1/embeddings", content=b'{"model": "weather", "input": "sun"}', headers=headers)
            assert answer.status_code == 400
            assert f"'Content-Type: application/json', found {found}" in answer.json()["error"]["message"]


@contextmanager
def command(bundle: Path, history: Path) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """The command in a process of its own, ready to serve; killed at the end."""
    options = ["serve", str(bundle), "--port", "0", "--history", str(history)]
    arguments = [sys.executable, "-m", "weightpager", *options]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(history.parent)}
    del environment["WEIGHTPAGER_BACKEND"]  # the usual one begins ten times sooner
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[0]
            with httpx.Client(base_url=url, timeout=100, trust_env=False) as client:
                assert client.get("/ready").status_code == 200
                yield process, client
        finally:
            process.kill()


@pytest.mark.slow
def test_a_killed_server_is_back_at_once(assistant_bundle: Path, tmp_path: Path) -> None:
    history = tmp_path / "history"
    for task in ("weather", "animal"):
        with command(assistant_bundle, history) as (_, client):
            assert client.post("/v1/embeddings", json={"model": task, "input": "sun"}).status_code == 200
            time.sleep(2 * DELAY)
    with wp.Engine.from_pretrained(assistant_bundle, history=history) as engine:
        assert [visit.task for visit in engine.monitor.visits()] == ["weather", "animal"]


@pytest.mark.slow
def test_a_server_that_is_told_to_end_ends_well(assistant_bundle: Path, tmp_path: Path) -> None:
    with command(assistant_bundle, tmp_path / "history") as (process, _):
        (announced,) = running_servers(tmp_path / "weightpager")
        assert announced.pid == process.pid
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=100) == 0
    assert not list((tmp_path / "weightpager").iterdir())
