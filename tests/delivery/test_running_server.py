"""A server that runs on a pulled bundle takes the next version over, and goes back, while clients ask it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

import weightpager as wp
from fleet import NAME, Fleet, file_server
from running import ADMIN, Running, serving
from weightpager.delivery.pulling.pull import roll_back
from weightpager.runtime.budget import smallest_budget
from weightpager.server.scheduling.settings import Settings

TEXTS = {"animal": "red cat", "number": "one two", "weather": "sun"}


def label(running: Running, task: str) -> str:
    with running.http() as client:
        answer = client.post("/v1/classifications", json={"model": task, "input": TEXTS[task]})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["data"][0]["label"])


def reloaded(running: Running) -> dict[str, list[str]]:
    with running.http(ADMIN) as client:
        answer = client.post("/admin/reload")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def while_asked(running: Running, wanted: dict[str, str], change: Callable[[], None]) -> int:
    """Change something while clients ask for tasks; how often they were answered, each time rightly."""
    over = threading.Event()

    def ask(task: str) -> int:
        count = 0
        while not over.is_set() or count < 20:
            assert label(running, task) == wanted[task]
            count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, task) for task in [*wanted] * 2]
        try:
            change()
        finally:
            over.set()
        return sum(one.result() for one in asking)


@pytest.mark.slow
def test_no_request_is_dropped_while_a_version_comes_and_goes(fleet: Fleet) -> None:
    with wp.Engine.from_pretrained(fleet.new) as engine:
        wanted = {task: str(engine.predict(task, [text])[0].label) for task, text in TEXTS.items()}
    new = wanted.pop("weather")
    with file_server(fleet.place.root) as url, serving(fleet.device.bundle, Settings(admin_token=ADMIN)) as running:

        def update() -> None:
            assert fleet.device.pull(url).outcome == "installed"
            assert reloaded(running)["added"] == ["weather"]
            assert label(running, "weather") == new

        def go_back() -> None:
            roll_back(fleet.device.into, NAME)
            assert reloaded(running)["removed"] == ["weather"]

        assert while_asked(running, wanted, update) >= 80
        assert while_asked(running, wanted, go_back) >= 80


def test_a_version_that_goes_from_the_disk_stays_readable_to_a_server(fleet: Fleet) -> None:
    with wp.Engine.from_pretrained(fleet.old) as engine:
        wanted = {task: str(engine.predict(task, [TEXTS[task]])[0].label) for task in ("animal", "number")}
    in_use = fleet.device.bundle.resolve()
    budget = str(smallest_budget(wp.Bundle.open(fleet.old)))  # so that every switch reads
    with serving(fleet.device.bundle, budget=budget) as running:
        fleet.device.pull(fleet.place.root, keep=1)
        assert not in_use.exists()
        for _ in range(3):
            assert {task: label(running, task) for task in wanted} == wanted
