"""Adapters that a server takes and gives up while it answers, by the routes of vLLM's clients."""

from __future__ import annotations

import random
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

import tiny
import weightpager as wp
from running import ADMIN, TOKEN, Running, serving
from weightpager.bundle import Bundle
from weightpager.bundle.addition import Addition, add_task
from weightpager.runtime.budget import largest_budget
from weightpager.server.scheduling.settings import Settings


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a task that keeps all blocks, and adapters beside it."""
    folder = tmp_path_factory.mktemp("base")
    content = tiny.writer(folder, sparsity=0, compare="none")
    wp.compile(content | {"tasks": {"animals": content["tasks"]["animals"]}}, folder / "a.bundle")
    for number in range(3):
        adapter(folder / f"lora-{number}", number)
    return folder


def adapter(folder: Path, seed: int, rank: int = 4) -> None:
    drawn, arrays = np.random.default_rng(seed), {}
    for layer in range(2):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        arrays[f"{name}.lora_A.weight"] = drawn.normal(size=(rank, 64)).astype(np.float32)
        arrays[f"{name}.lora_B.weight"] = drawn.normal(size=(64, rank)).astype(np.float32)
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}', encoding="utf-8")
    (folder / "adapter_model.safetensors").write_bytes(save(arrays))


@pytest.fixture
def running(base: Path, tmp_path: Path) -> Iterator[Running]:
    path = shutil.copytree(base / "a.bundle", tmp_path / "a.bundle")
    with serving(path, Settings(admin_token=ADMIN)) as running:
        yield running


def asked(running: Running, what: str, token: str | None = ADMIN, **body: Any) -> tuple[int, str]:
    with running.http(token) as client:
        answer = client.post(f"/v1/{what}_lora_adapter", json=body)
    return answer.status_code, answer.text


def test_an_adapter_is_loaded_asked_and_unloaded(running: Running, base: Path) -> None:
    told = asked(running, "load", lora_name="german", lora_path=str(base / "lora-0"))
    assert told == (200, "Success: LoRA adapter 'german' added successfully.")
    assert [model.id for model in running.openai.models.list()] == ["animals", "german"]
    answers = {
        name: running.openai.completions.create(model=name, prompt="red cat", max_tokens=8, temperature=0)
        for name in ("animals", "german")
    }
    with wp.load(running.service.engine.bundle.path) as fresh:
        for name, answer in answers.items():
            assert answer.choices[0].text == fresh.generate(name, "red cat", max_new_tokens=8).completion
    status, text = asked(running, "load", lora_name="german", lora_path=str(base / "lora-1"))
    assert (status, "name: expected a new one" in text) == (400, True)
    told = asked(running, "unload", lora_name="german")
    assert told == (200, "Success: LoRA adapter 'german' removed successfully.")
    assert list(Bundle.open(running.service.engine.bundle.path).tasks) == ["animals"]
    assert asked(running, "unload", lora_name="german")[0] == 404


def test_only_the_admin_may(running: Running, base: Path) -> None:
    for token, status in ((None, 401), (TOKEN, 401)):
        assert asked(running, "load", token, lora_name="a", lora_path=str(base / "lora-0"))[0] == status
        assert asked(running, "unload", token, lora_name="animals")[0] == status


def test_what_cannot_be_taken_changes_nothing(running: Running, base: Path, tmp_path: Path) -> None:
    before = Bundle.open(running.service.engine.bundle.path).manifest
    for body in (
        {"lora_name": "a", "lora_path": str(tmp_path / "nowhere")},
        {"lora_name": "a", "lora_path": "/etc/passwd"},
        {"lora_name": "../a", "lora_path": str(base / "lora-0")},
        {"lora_name": "a", "lora_path": str(base / "lora-0"), "like": "nobody"},
        {"lora_name": "a", "lora_path": str(base / "lora-0"), "base_model_name": "x"},
    ):
        status, text = asked(running, "load", **body)
        assert status in (400, 404), text
    status, text = asked(running, "unload", lora_name="animals")
    assert (status, "expected a task with a LoRA adapter" in text) == (400, True)
    assert Bundle.open(running.service.engine.bundle.path).manifest == before


def test_a_pinned_adapter_stays(running: Running, base: Path) -> None:
    asked(running, "load", lora_name="a", lora_path=str(base / "lora-0"))
    running.service.engine.pin("a")
    status, text = asked(running, "unload", lora_name="a")
    assert (status, "pinned" in text) == (400, True)
    running.service.engine.unpin("a")
    assert asked(running, "unload", lora_name="a")[0] == 200


def test_an_adapter_without_room_leaves_the_bundle_as_it_was(base: Path, tmp_path: Path) -> None:
    path = shutil.copytree(base / "a.bundle", tmp_path / "a.bundle")
    adapter(tmp_path / "large", 0, rank=64)
    with serving(path, Settings(admin_token=ADMIN), budget=largest_budget(Bundle.open(path))) as running:
        status, text = asked(running, "load", lora_name="a", lora_path=str(tmp_path / "large"))
        assert (status, "smallest budget that would do" in text) == (409, True)
        assert list(Bundle.open(path).tasks) == ["animals"]
        assert running.openai.completions.create(model="animals", prompt="red", max_tokens=2).choices


@pytest.mark.parametrize("rounds", [pytest.param(8, marks=pytest.mark.slow), pytest.param(250, marks=pytest.mark.long)])
def test_adapters_come_and_go_under_clients(running: Running, base: Path, tmp_path: Path, rounds: int) -> None:
    """Every answer is that of a fresh engine with that adapter, whatever is loaded and unloaded meanwhile."""
    path = Path(shutil.copytree(base / "a.bundle", tmp_path / "fresh.bundle"))
    for number in range(3):
        add_task(path, Addition(f"lora-{number}", base / f"lora-{number}"))
    with wp.load(path) as fresh:
        names = ["animals", *(f"lora-{number}" for number in range(3))]
        wanted = {name: fresh.generate(name, "red cat", max_new_tokens=8).completion for name in names}
    assert len(set(wanted.values())) > 2
    wrong, over, answered = list[tuple[str, str]](), threading.Event(), Counter[str]()

    def client(seed: int) -> None:
        drawn = random.Random(seed)
        with running.http(None) as http:
            while not over.is_set():
                name = drawn.choice(names)
                body = {"model": name, "prompt": "red cat", "max_tokens": 8, "temperature": 0}
                found = http.post("/v1/completions", json=body)
                if found.status_code == 200:
                    answered[name] += 1
                    if (text := found.json()["choices"][0]["text"]) != wanted[name]:
                        wrong.append((name, text))
                elif name == "animals" or found.status_code not in (404, 503):
                    wrong.append((name, f"{found.status_code} {found.text}"))

    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
    for each in clients:
        each.start()
    for turn in range(rounds):
        some = [f"lora-{number % 3}" for number in (turn, turn + 1)]
        for name in some:
            assert asked(running, "load", lora_name=name, lora_path=str(base / name))[0] == 200
        for name in some:
            assert asked(running, "unload", lora_name=name)[0] == 200
    over.set()
    for each in clients:
        each.join()
    assert not wrong
    assert answered.keys() == {*names}
    assert list(Bundle.open(running.service.engine.bundle.path).tasks) == ["animals"]
