"""A real server on a free port, in a thread of this process."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import openai

from weightpager.engine import Engine
from weightpager.server.run import listen, server
from weightpager.server.scheduling.service import Service
from weightpager.server.scheduling.settings import Policy, Settings

HOST = "127.0.0.1"
TOKEN = "a-token-for-the-tests"
ADMIN = "the-admin's-token-for-the-tests"


@dataclass(frozen=True)
class Running:
    url: str
    service: Service
    openai: openai.OpenAI

    def http(self, token: str | None = None) -> httpx.Client:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)

    def raw(self, data: bytes) -> socket.socket:
        """A connection over which nothing but these bytes has been sent."""
        connection = socket.create_connection((HOST, int(self.url.rsplit(":", 1)[1])))
        connection.sendall(data)
        return connection

    def post(self, path: str, body: object) -> socket.socket:
        """A connection over which a request has been sent, and nothing read yet."""
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        return self.raw(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)

    def complete(self, prompt: str, most: int = 1) -> str:
        """The likeliest continuation by the task "animals"."""
        found = self.openai.completions.create(model="animals", prompt=prompt, max_tokens=most, temperature=0)
        return found.choices[0].text

    def until_idle(self) -> None:
        while self.service.worker.running or self.service.queue.waiting():
            time.sleep(0.005)


def openai_client(url: str, token: str = "none") -> openai.OpenAI:
    plain = httpx.Client(trust_env=False)
    return openai.OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0, timeout=60, http_client=plain)


@contextmanager
def serving(bundle: Path, settings: Settings | None = None, *, grace: float = 5, **options: Any) -> Iterator[Running]:
    """Serve a bundle until the block ends."""
    settings = replace(settings or Settings(policy=Policy()), grace=grace)
    with served(Service(Engine.from_pretrained(bundle, **options), settings)) as running:
        yield running


@contextmanager
def served(service: Service) -> Iterator[Running]:
    """Have a service serve until the block ends."""
    with listen(HOST, 0) as listening:
        serving = server(service, host=HOST, port=0)
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [listening]})
        thread.start()
        while not serving.started and thread.is_alive():
            time.sleep(0.01)
        try:
            url = f"http://{HOST}:{listening.getsockname()[1]}"
            with openai_client(url) as client:
                yield Running(url, service, client)
        finally:
            serving.should_exit = True
            thread.join()
