"""Questions about pictures over HTTP, on a real server."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

import tiny
import weightpager as wp
from running import Running, serving
from weightpager.errors import ConfigError
from weightpager.machine import packages
from weightpager.server.inputs.picture_inputs import MOST_PICTURE_BYTES, MOST_PICTURES
from weightpager.server.scheduling.service import Service
from weightpager.server.scheduling.settings import Policy, Settings


@pytest.fixture(scope="module")
def watcher(watcher_bundle: Path) -> Iterator[Running]:
    """A task of plain prompts and one of conversations, both about pictures; texts run alone."""
    with serving(watcher_bundle, Settings(policy=Policy(batch=1))) as running:
        yield running


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("frames")
    return [tiny.picture(folder / f"{colour}.png", colour, "asked", (44, 40)) for colour in ("red", "blue")]


def data_url(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def part(url: str, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def words(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def asking(*parts: dict[str, Any], model: str = "number", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": list(parts)}], "max_tokens": 4} | more


def post(running: Running, route: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    with running.http() as client:
        answer = client.post(f"/v1/{route}", json=body)
    return answer.status_code, answer.json()


def refused(running: Running, body: dict[str, Any], route: str = "chat/completions") -> dict[str, Any]:
    status, found = post(running, route, body)
    assert status == 400, found
    error: dict[str, Any] = found["error"]
    return error


def test_openais_client_asks_about_several_pictures(watcher: Running, watcher_bundle: Path, files: list[Path]) -> None:
    urls = [data_url(file.read_bytes()) for file in files]
    with wp.load(watcher_bundle) as engine:
        said = [{"type": "image"}, words("and"), {"type": "image"}, words("two")]
        wanted = engine.generate("number", [{"role": "user", "content": said}], files, max_new_tokens=4)
    messages: Any = asking(part(urls[0], detail="low"), words("and"), part(urls[1]), words("two"))["messages"]
    found = watcher.openai.chat.completions.create(model="number", messages=messages, max_tokens=4, temperature=0)
    assert found.choices[0].message.content == wanted.completion
    assert found.usage is not None
    assert found.usage.prompt_tokens == 2 * 4 + 2 + 1  # a picture's places, the words, and what the template adds
    stream = watcher.openai.chat.completions.create(
        model="number",
        messages=messages,
        max_tokens=4,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == wanted.completion
    assert chunks[-1].usage == found.usage


def test_a_task_of_plain_prompts_takes_parts_and_images(
    watcher: Running, watcher_bundle: Path, files: list[Path]
) -> None:
    content = files[0].read_bytes()
    with wp.load(watcher_bundle) as engine:
        wanted = engine.generate("animal", "<image>\nred", files[:1], max_new_tokens=4)
        placed = engine.generate("animal", "one <image> red", files[:1], max_new_tokens=4)
        before = engine.generate("animal", "red", files[:1], max_new_tokens=4)
    status, found = post(watcher, "chat/completions", asking(part(data_url(content)), words("red"), model="animal"))
    assert (status, found["choices"][0]["message"]["content"]) == (200, wanted.completion)
    for image in (data_url(content), base64.b64encode(content).decode()):
        body = {"model": "animal", "prompt": "one <image> red", "images": [image], "max_tokens": 4}
        status, found = post(watcher, "completions", body)
        assert (status, found["choices"][0]["text"]) == (200, placed.completion)
        status, found = post(watcher, "completions", body | {"prompt": "red"})
        assert (status, found["choices"][0]["text"]) == (200, before.completion)
        assert found["usage"]["prompt_tokens"] == 4 + 1 + 1  # a picture's places, a word, and what begins a text


def test_five_questions_about_a_frame_run_the_tower_once(watcher_bundle: Path, files: list[Path]) -> None:
    url = data_url(files[0].read_bytes())
    with serving(watcher_bundle) as running:
        for number, model in enumerate(("number", "animal", "number", "animal", "number")):
            assert post(running, "chat/completions", asking(part(url), words("red " * number), model=model))[0] == 200
        with running.http() as client:
            seen = client.get("/status").json()["features"]
            metrics = client.get("/metrics").text
        assert seen == {"kept": 1, "bytes": 4 * 48 * 4, "hits": 4, "misses": 1, "evicted": 0}
        for line in ("features 1.0", "feature_bytes 768.0", "feature_hits_total 4.0", "feature_misses_total 1.0"):
            assert f"\nweightpager_{line}\n" in metrics
        assert 'weightpager_memory_bytes{purpose="features"} 12288.0' in metrics


def test_servers_of_texts_alone_show_no_features(writer: Running) -> None:
    with writer.http() as client:
        assert "features" not in client.get("/status").json()["memory"]
        metrics = client.get("/metrics").text
    assert 'purpose="rows"' in metrics
    assert "feature" not in metrics


def test_prompts_with_and_without_pictures_run_together(watcher_bundle: Path, files: list[Path]) -> None:
    with serving(watcher_bundle, Settings(policy=Policy(linger=0.2, batch=4))) as running:
        url = data_url(files[0].read_bytes())
        bodies = [asking(words("red")), asking(part(url), words("red")), asking(part(url), part(url), words("red"))]
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(lambda body: post(running, "chat/completions", body), bodies))
    assert [status for status, _ in found] == [200] * 3
    assert [answer["usage"]["prompt_tokens"] for _, answer in found] == [2, 6, 10]


def test_models_say_what_a_picture_takes(watcher: Running, writer: Running) -> None:
    assert watcher.openai.models.retrieve("number").to_dict()["picture_tokens"] == 4
    assert writer.openai.models.retrieve("animals").to_dict()["picture_tokens"] is None


PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://example.org/frame.png", "nothing is fetched from an address, found 'https://example.org/frame.png'"),
        ("http://169.254.169.254/latest", "nothing is fetched from an address"),
        ("file:///etc/passwd", "nothing is fetched from an address"),
        ("/etc/passwd", "expected a picture as a data URL, or its base64 alone"),
        ("data:text/html;base64,aGVsbG8=", "expected a picture as a data URL"),
        ("data:image/svg+xml;base64,aGVsbG8=", "expected a picture as a data URL"),
        ("data:image/gif;base64,R0lGODlhAQABAAAAACw=", "expected a picture as a data URL"),
        ("data:image/png;base64,!!!", "expected base64 in the data URL"),
        ("data:image/png;base64,é", "expected base64 in the data URL"),
        ("data:image/png;base64,", "found something else"),
        ("", "found something else"),
        (f"data:image/png;base64,{PNG}", "found something else"),
    ],
)
def test_what_is_no_picture_is_refused(watcher: Running, url: str, expected: str) -> None:
    content = json.dumps(asking(part(url), words("red"))).encode()
    with watcher.http() as client:
        answer = client.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert expected in error["message"]
    assert (error["param"], error["code"]) == ("messages", "invalid_image")


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_bombs_and_odd_pictures_are_refused(watcher: Running, files: list[Path]) -> None:
    whole = files[0].read_bytes()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    given = [
        (encoded(Image.new("1", (20_000, 20_000))), "expected at most 8388608 pixels"),
        (encoded(Image.new("1", (5000, 5000))), "expected at most 8388608 pixels, found 5000 × 5000"),
        (encoded(Image.new("L", (4000, 4))), "expected sides of at most 1 : 32"),
        (encoded(Image.new("I;16", (8, 8))), "expected 8 bits a channel"),
        (encoded(frames[0], save_all=True, append_images=frames[1:]), "expected a picture of one frame"),
        (whole[: len(whole) // 2], "expected a whole image, found a damaged one"),
        (whole.ljust(MOST_PICTURE_BYTES + 9, b"\0"), f"expected a picture of at most {MOST_PICTURE_BYTES} bytes"),
    ]
    for content, expected in given:
        assert expected in refused(watcher, asking(part(data_url(content)), words("red")))["message"]


def test_pixels_of_all_pictures_are_bounded_before_any_is_decoded(watcher: Running) -> None:
    large = data_url(encoded(Image.new("1", (2896, 2896))))
    assert post(watcher, "chat/completions", asking(*[part(large)] * 8, words("red")))[0] == 200
    wide = data_url(encoded(Image.new("1", (2897, 2897))))
    assert "expected at most 8388608 pixels" in refused(watcher, asking(part(wide)))["message"]


def test_the_number_of_pictures_is_bounded(watcher: Running, files: list[Path]) -> None:
    url = data_url(files[0].read_bytes())
    error = refused(watcher, asking(*[part(url)] * (MOST_PICTURES + 1)))
    assert error["message"] == "expected at most 8 pictures a request, found 9"
    error = refused(watcher, {"model": "animal", "prompt": "red", "images": [url] * 9}, "completions")
    assert "expected at most 8 items, found 9" in error["message"]
    error = refused(watcher, {"model": "animal", "prompt": ["red", "blue"], "images": [url]}, "completions")
    assert error["param"] == "prompt"
    assert "expected one text as the prompt beside images" in error["message"]


def test_places_of_pictures_are_counted(watcher: Running, files: list[Path]) -> None:
    url = data_url(files[0].read_bytes())
    error = refused(watcher, asking(part(url), words("<image> red")))
    assert "expected as many <image> in the text as pictures, 1, or none, found 2" in error["message"]
    assert error["param"] == "messages"
    assert "found 1" in refused(watcher, asking(words("<image> red")))["message"]
    assert "found 1" in refused(watcher, {"model": "animal", "prompt": "<image> red"}, "completions")["message"]
    error = refused(watcher, {"model": "animal", "prompt": [2, 16, 4]}, "completions")
    assert error["message"] == "expected token ids of words, found a picture's place, 16"
    assert post(watcher, "embeddings", {"model": "animal", "input": [4, 5]})[0] == 200


def test_tasks_that_read_no_pictures_say_so(writer: Running, files: list[Path]) -> None:
    url = data_url(files[0].read_bytes())
    error = refused(writer, asking(part(url), words("red"), model="animals"))
    assert error["message"] == "expected text alone, as task 'animals' reads it, found 1 picture"
    error = refused(writer, {"model": "animals", "prompt": "red", "images": [url]}, "completions")
    assert error["param"] == "images"


def test_other_parts_are_refused(watcher: Running) -> None:
    error = refused(watcher, asking({"type": "input_audio", "input_audio": {}}, words("red")))
    assert error["param"] == "messages.0.content.0"
    assert error["message"] == "messages.0.content.0: expected a part whose type is 'text' or 'image_url'"
    for url in (3, None, "x" * 6_000_000):
        error = refused(watcher, asking({"type": "image_url", "image_url": {"url": url}}))
        assert error["param"] == "messages.0.content.0.image_url.url"
    content = b'{"model": "number", "messages": [{"role": "user", "content": [{"type": "text", "text": "\\ud800"}]}]}'
    with watcher.http() as client:
        answer = client.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    assert answer.json()["error"]["param"] == "messages.0.content.0.text"


def test_a_picture_that_a_small_body_has_no_room_for_fits(watcher: Running) -> None:
    noise = Image.effect_noise((1200, 1200), 90)
    content = encoded(noise)
    assert 2**20 < len(content) < MOST_PICTURE_BYTES
    assert post(watcher, "chat/completions", asking(part(data_url(content)), words("red")))[0] == 200


def test_texts_may_not_be_larger_where_bodies_have_room_for_pictures(watcher: Running) -> None:
    error = refused(watcher, {"model": "animal", "prompt": "red " * 2**20}, "completions")
    assert "characters together" in error["message"]


def test_large_bodies_are_pictures_of_whoever_brings_the_token(watcher_bundle: Path) -> None:
    token = "t" * 16
    picture = data_url(encoded(Image.effect_noise((1200, 1200), 90)))
    numbers = b'{"model": "number", "prompt": [' + b"1," * 2**20 + b"1]}"
    with serving(watcher_bundle, Settings(token=token)) as running, running.http() as client:
        for path in ("chat/completions", "completions"):
            assert client.post(f"/v1/{path}", content=numbers).status_code == 401
        client.headers["authorization"] = f"Bearer {token}"
        answer = client.post("/v1/completions", content=numbers)
        assert answer.status_code == 413
        assert "to be pictures in base64, with at most 524288 of the characters [ { , in it" in answer.text
        assert client.post("/v1/embeddings", content=numbers).status_code == 413
        assert client.post("/v1/chat/completions", json=asking(part(picture), words("red"))).status_code == 200


def test_a_server_without_pillow_says_so_when_it_starts(watcher_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "is_installed", lambda package: package != "PIL")
    with wp.load(watcher_bundle) as engine, pytest.raises(ConfigError, match=r"weightpager\[images\]"):
        Service(engine, Settings())


def test_requests_take_as_many_places_as_they_have_pictures(watcher_bundle: Path, files: list[Path]) -> None:
    url = data_url(files[0].read_bytes())
    with serving(watcher_bundle, Settings(queue=4)) as running:
        assert post(running, "chat/completions", asking(*[part(url)] * 4, words("red")))[0] == 200
        status, found = post(running, "chat/completions", asking(*[part(url)] * 5, words("red")))
        assert status == 400
        assert "--queue" in found["error"]["message"]
        assert running.service.queue.taken() == 0
        for _ in range(3):
            refused(running, asking(*[part("data:image/png;base64,aaaa")] * 4))
        assert running.service.queue.taken() == 0


def test_the_description_says_what_parts_there_are(watcher: Running) -> None:
    with watcher.http() as client:
        schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert set(schemas["PicturePart"]["properties"]) == {"type", "image_url"}
    assert "nothing is fetched" in schemas["PictureUrl"]["properties"]["url"]["description"]
    assert "images" in schemas["CompletionBody"]["properties"]


def test_openais_client_gets_errors_as_such(watcher: Running) -> None:
    messages: Any = asking(part("https://example.org/a.png"), words("red"))["messages"]
    with pytest.raises(openai.BadRequestError, match="nothing is fetched from an address"):
        watcher.openai.chat.completions.create(model="number", messages=messages)
