"""``weightpager serve --replicas``, as it is typed: real servers on a cluster of its own, and what ends them."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray.serve import Application

import weightpager as wp
from running import serving
from weightpager.errors import ConfigError
from weightpager.ray.application import app
from weightpager.server.scheduling.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PAGE = (Path(__file__).parents[2] / "docs" / "ray.md").read_text(encoding="utf-8")
SHORT = {"model": "animals", "prompt": "cat", "max_tokens": 4, "temperature": 0}
LONG = {"model": "numbers", "prompt": ["two"] * 96, "max_tokens": 100, "temperature": 0, "ignore_eos": True}

_LONGEST = 200.0
"""Seconds that an answer, or a server's start, may take on a busy machine."""


@dataclass(frozen=True)
class Cluster:
    process: subprocess.Popen[str]
    url: str

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=_LONGEST, trust_env=False)

    def servers(self) -> list[int]:
        """Process ids of the servers, which Ray names."""
        return [number for number, name in self._descendants() if ":servers" in name]

    def _descendants(self) -> Iterator[tuple[int, str]]:
        parents, names = {}, {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    names[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                except OSError:  # it has ended
                    continue
        for number, name in names.items():
            above = number
            while above and above != self.process.pid:
                above = parents.get(above, 0)
            if above:
                yield number, name

    def until_servers(self, count: int) -> None:
        end = time.monotonic() + _LONGEST
        with self.client() as client:
            while len(client.get("/replicas").json()) != count or len(self.servers()) != count:
                assert time.monotonic() < end, f"expected {count} servers, found {self.servers()}"
                client.post("/v1/completions", json=SHORT)  # the gateway learns of servers as it sends requests
                time.sleep(0.2)


@contextmanager
def started(bundle: Path, *options: str) -> Iterator[Cluster]:
    [typed] = re.findall(r"^weightpager (serve .*)$", PAGE, re.MULTILINE)
    typed = typed.replace("assistant.bundle", str(bundle)).replace("--port 8000", "--port 0")
    command = [sys.executable, "-m", "weightpager", *shlex.split(typed), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        assert process.stdout is not None
        with process.stdout as said:
            url = _address(said)
            draining = threading.Thread(target=said.read)
            draining.start()
            yield Cluster(process, url)
            process.terminate()
            draining.join(60)
    finally:
        process.terminate()
        process.wait(60)


def _address(said: Iterable[str]) -> str:
    before = []
    for text in said:
        if found := re.search(r"(http://\S+)/ serves", text):
            return found[1]
        before.append(text)
    raise AssertionError("".join(before))


@pytest.fixture(scope="module")
def cluster(writer_bundle: Path) -> Iterator[Cluster]:
    with started(writer_bundle, "--backend", "native") as running:
        yield running


def test_the_pages_application_is_one(writer_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("assistant.bundle").symlink_to(writer_bundle)
    [code] = [
        found for found in re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE) if "app(" in found
    ]
    names: dict[str, object] = {}
    exec(code, names)
    assert isinstance(names["application"], Application)


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ({"replicas": 0}, "replicas"),
        ({"replicas": (3, 2)}, "replicas"),
        ({"cpus": 0.0}, "cpus"),
        ({"cpus": float("inf")}, "cpus"),
        ({"settings": Settings(admin_token="the-admin's-own-token")}, "settings"),
        ({"history": "visits.jsonl"}, "history"),
        ({"budget": "many"}, "many"),
    ],
)
def test_an_application_that_cannot_be(writer_bundle: Path, arguments: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong):
        app(writer_bundle, **arguments)


def test_a_server_without_a_budget_gets_what_its_engine_takes(wordy_bundle: Path) -> None:
    [servers, *_] = app(wordy_bundle)._bound_deployment.init_args
    reserved = servers._bound_deployment.ray_actor_options["memory"]
    with wp.Engine.from_pretrained(wordy_bundle) as engine:
        assert reserved == engine.report().budget + (400 << 20)


def test_a_server_has_room_for_two_bodies_with_pictures(watcher_bundle: Path) -> None:
    [servers, _, most] = app(watcher_bundle, "1MiB")._bound_deployment.init_args
    reserved = servers._bound_deployment.ray_actor_options["memory"]
    assert reserved == (1 << 20) + (400 << 20) + 2 * 3 * (most - (1 << 20))


def test_answers_are_those_of_one_server(cluster: Cluster, writer_bundle: Path) -> None:
    """Texts, streams, lists and refusals."""
    asked = [
        ("POST", "/v1/completions", SHORT),
        ("POST", "/v1/completions", {**SHORT, "stream": True}),
        ("POST", "/v1/completions", {**SHORT, "model": "none"}),
        ("POST", "/v1/completions", {"model": "animals"}),
        ("POST", "/v1/embeddings", {"model": "numbers", "input": ["two", "one"]}),
        ("GET", "/v1/models", None),
        ("GET", "/v1/models/numbers", None),
        ("GET", "/v1/nothing", None),
        ("GET", "/health", None),
        ("GET", "/ready", None),
    ]
    with serving(writer_bundle, backend="native") as alone, alone.http() as one, cluster.client() as several:
        for method, path, body in asked:
            wanted, found = (client.request(method, path, json=body) for client in (one, several))
            assert found.status_code == wanted.status_code, path
            assert _lasting(found.text) == _lasting(wanted.text), path
            assert found.headers["content-type"] == wanted.headers["content-type"], path


def _lasting(text: str) -> str:
    """Without what every answer has of its own."""
    return re.sub(r'"(id|created)": ?("[a-z]+-[0-9a-f]+"|\d+)', "", text)


def test_routes_of_one_server_are_refused(cluster: Cluster) -> None:
    with cluster.client() as client:
        for path in ("/metrics", "/status", "/admin/budget", "/"):
            answer = client.get(path)
            assert answer.status_code == 404
            assert "/replicas" in answer.json()["error"]["message"]
        large = client.post("/v1/completions", content=b"x" * (2 << 20))
        assert large.status_code == 413


def test_a_task_goes_where_it_is(cluster: Cluster) -> None:
    with cluster.client() as client:
        for _ in range(20):
            for task in ("animals", "numbers"):
                assert client.post("/v1/completions", json={**SHORT, "model": task}).status_code == 200
        standings = client.get("/replicas").json()
    assert len(standings) == 2
    assert sum(standing["switches"] for standing in standings) < 10
    assert {standing["current"] for standing in standings} == {"animals", "numbers"}


def test_servers_that_die_cost_no_answer(cluster: Cluster) -> None:
    """One dies every few seconds, in the middle of requests; no request meets more deaths than it is sent again."""
    cluster.until_servers(2)
    over = threading.Event()
    statuses: list[list[int]] = [[] for _ in range(4)]

    def ask(number: int) -> None:
        body = {**LONG, "model": ("animals", "numbers")[number % 2], "prompt": ["two"] * 32}
        with cluster.client() as client:
            while not over.is_set():
                statuses[number].append(client.post("/v1/completions", json=body).status_code)

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, number) for number in range(4)]
        try:
            for _ in range(3):
                before = [len(each) for each in statuses]
                os.kill(cluster.servers()[0], signal.SIGKILL)
                time.sleep(3)
                while any(len(each) == count for each, count in zip(statuses, before, strict=True)):  # a busy machine
                    for asker in wait(asking, 0.05, FIRST_EXCEPTION).done:
                        asker.result()
        finally:
            over.set()
        for asker in asking:
            asker.result()
    assert min(map(len, statuses)) >= 1
    assert set().union(*statuses) == {200}
    cluster.until_servers(2)


def test_a_stream_that_is_cut_says_so(cluster: Cluster) -> None:
    cluster.until_servers(2)
    with cluster.client() as client, client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: {")
        for number in cluster.servers():
            os.kill(number, signal.SIGKILL)
        rest = [text for text in lines if text]
    assert "server_ended" in rest[-1]
    cluster.until_servers(2)


def test_the_end_waits_for_answers(cluster: Cluster) -> None:
    """Comes last: it ends the cluster."""
    cluster.until_servers(2)
    with ThreadPoolExecutor(1) as pool, cluster.client() as client:
        asked = pool.submit(client.post, "/v1/completions", json=LONG)
        time.sleep(0.2)
        assert not asked.done()
        cluster.process.terminate()
        answer = asked.result()
    assert answer.status_code == 200
    assert len(answer.json()["choices"]) == 96
    assert cluster.process.wait(60) == 0
    assert not cluster.servers()
