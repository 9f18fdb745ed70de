"""Images in requests, on a real server."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

import tiny
import weightpager as wp
from running import Running


def data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def ask(running: Running, route: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    with running.http() as client:
        answer = client.post(f"/v1/{route}", json=body)
    return answer.status_code, answer.json()


def test_classes_are_what_the_engine_says(camera: Running, camera_bundle: Path, tmp_path: Path) -> None:
    colours = ["red", "green", "blue", "white"]
    files = [tiny.picture(tmp_path / f"{colour}.png", colour, "asked", size=(20, 18)) for colour in colours]
    with wp.Engine.from_pretrained(camera_bundle) as engine:
        wanted = engine.predict("colour", [str(file) for file in files])
    status, found = ask(camera, "classifications", {"model": "colour", "input": [data_url(file) for file in files]})
    assert status == 200
    assert [row["label"] for row in found["data"]] == [row.label for row in wanted]
    for row, direct in zip(found["data"], wanted, strict=True):
        assert row["score"] == pytest.approx(direct.score, abs=1e-5)
        assert {score["label"] for score in row["scores"]} == {"red", "green", "blue"}
    assert found["usage"]["prompt_tokens"] == 0


def test_it_is_listed(camera: Running) -> None:
    listed = {model.id: model for model in camera.openai.models.list()}
    assert set(listed) == {"colour", "warm", "bright"}
    assert listed["warm"].to_dict()["kind"] == "image-classification"
    assert listed["warm"].to_dict()["max_length"] is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a text", "expected an image as a data URL"),
        ("https://example.org/frame.png", "expected an image as a data URL"),
        ("file:///etc/passwd", "expected an image as a data URL"),
        ("data:text/plain;base64,aGVsbG8=", "expected an image as a data URL"),
        ("data:image/png;base64,!!!", "expected base64 in the data URL"),
        ("data:image/png;base64,é", "expected base64 in the data URL"),
        ("data:image/png;base64,", "found something else"),
        ("data:image/png;base64,aGVsbG8=", "found something else"),
    ],
)
def test_what_is_no_image_is_refused(camera: Running, given: str, expected: str) -> None:
    status, found = ask(camera, "classifications", {"model": "warm", "input": given})
    assert status == 400
    assert expected in found["error"]["message"]
    assert found["error"]["code"] == "invalid_image"
    assert found["error"]["param"] == "input"


def test_a_large_image_is_refused(camera: Running, tmp_path: Path) -> None:
    large = tiny.picture(tmp_path / "large.png", "red", size=(3000, 3000))
    status, found = ask(camera, "classifications", {"model": "warm", "input": data_url(large)})
    assert status == 400
    assert "expected at most 8388608 pixels, found 3000 × 3000" in found["error"]["message"]


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("embeddings", {"input": "a text"}),
        ("completions", {"prompt": "a text"}),
        ("chat/completions", {"messages": [{"role": "user", "content": "a text"}]}),
    ],
)
def test_other_routes_are_for_texts(camera: Running, route: str, body: dict[str, Any]) -> None:
    status, found = ask(camera, route, {"model": "warm"} | body)
    assert status == 400
    assert found["error"]["param"] == "model"
