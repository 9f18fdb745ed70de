"""Clients that mean no good beside honest ones: every honest request is answered, within the documented bound."""

from __future__ import annotations

import base64
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from running import Running, serving
from weightpager.answers import model
from weightpager.server.scheduling import batching
from weightpager.server.scheduling.settings import Policy, Settings

HONEST, ROUNDS = 32, 3


def attacked(
    running: Running, path: str, honest: list[dict[str, Any]], others: list[dict[str, Any]], ahead: int
) -> None:
    """Honest clients ask, each again when it is answered, while others ask again and again."""
    over, waits, refused = threading.Event(), list[float](), set[int]()

    def ask(number: int) -> None:
        with running.http() as client:
            for turn in range(ROUNDS):
                answer = client.post(path, json=honest[(number + turn) % len(honest)])
                assert answer.status_code == 200, answer.text
                waits.append(float(answer.headers["server-timing"].rsplit("=", 1)[1]) / 1e3)

    def disturb(body: dict[str, Any]) -> None:
        with running.http() as client:
            while not over.is_set():
                refused.add(client.post(path, json=body).status_code)

    with ThreadPoolExecutor(HONEST + len(others)) as pool:
        attacks = [pool.submit(disturb, body) for body in others]
        time.sleep(0.2)
        clients = [pool.submit(ask, number) for number in range(HONEST)]
        try:
            for client in clients:
                client.result()
        finally:
            over.set()
        for attack in attacks:
            attack.result()
    assert refused <= {200, 400, 429}
    assert max(waits) <= bound(running, ahead)


def bound(running: Running, ahead: int) -> float:
    value = running.service.metrics.registry.get_sample_value
    step, switch = value("weightpager_slowest_batch_seconds"), value("weightpager_slowest_switch_seconds")
    assert step is not None
    tasks = len(running.service.engine.bundle.tasks)
    return running.service.settings.policy.longest_wait(tasks, step, switch or 0.0, ahead)


@pytest.mark.slow
def test_honest_requests_beside_long_prompts(writer_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((model, "PIECE"), (batching, "PIECE"), (batching, "HEAVY")):
        monkeypatch.setattr(module, name, 8)
    monkeypatch.setattr(model, "FORWARD_TOKENS", 32)
    body = {"max_tokens": 1, "temperature": 0}
    honest = [body | {"model": task, "prompt": "cat"} for task in ("animals", "numbers")]
    others = [body | {"model": "animals", "prompt": "cat dog red " * count} for count in (39, 42, 4000)]
    with serving(writer_bundle, Settings(policy=Policy(patience=0.5), timeout=60)) as running:
        attacked(running, "/v1/completions", honest, others, HONEST + len(others))


@pytest.mark.slow
def test_honest_requests_beside_many_large_images(camera_bundle: Path) -> None:
    def url(width: int, height: int) -> str:
        content = io.BytesIO()
        Image.new("1", (width, height)).save(content, "PNG")
        return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"

    honest = [{"model": task, "input": url(16, 16)} for task in ("warm", "bright")]
    others = [{"model": "warm", "input": [url(3840, 2184)] * count} for count in (1, 3, 128)]
    with serving(camera_bundle, Settings(policy=Policy(patience=0.5), timeout=60, body_bytes=2**22)) as running:
        attacked(running, "/v1/classifications", honest, others, HONEST + 132)
