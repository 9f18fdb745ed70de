"""What is done for a request before it waits: in turns, and never before its places are taken."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from typing import Any

import httpx
import pytest
from PIL import Image

from running import ADMIN, Running, serving
from weightpager.answers.token_reader import TokenReader
from weightpager.errors import QueueFullError
from weightpager.readers.image_reader import ImageReader
from weightpager.server.inputs.lanes import TwoLanes
from weightpager.server.scheduling.settings import Settings


def png(side: int = 16) -> str:
    buffer = BytesIO()
    Image.new("RGB", (side, side), "red").save(buffer, "PNG")
    return data_url(buffer.getvalue())


def data_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def say(order: list[str], name: str, _: None) -> None:
    order.append(name)


def apply(tool: Any, piece: Callable[[Any], Any]) -> Any:
    return piece(tool)


def test_requests_are_read_in_turns() -> None:
    order: list[str] = []

    async def read() -> None:
        lanes: TwoLanes[None] = TwoLanes(None, lambda: None, 16)
        await asyncio.gather(*(lanes.run(apply, [partial(say, order, name)] * 3) for name in "ab"))
        lanes.close()

    asyncio.run(read())
    assert order == ["a", "b"] * 3


def test_much_to_read_stands_before_nobody() -> None:
    go = threading.Event()

    async def read() -> int:
        lanes: TwoLanes[str] = TwoLanes("usual", lambda: "another", 16)
        tools: list[str] = []

        def wait(tool: str) -> None:
            tools.append(tool)
            go.wait()

        large = [asyncio.create_task(lanes.run(apply, [wait], large=True)) for _ in range(16)]
        await asyncio.sleep(0)
        assert await lanes.run(apply, [str.upper, len]) == ["USUAL", 5]
        for many in ([wait], [len] * 9):
            with pytest.raises(QueueFullError, match="requests of 16 texts or images are being read"):
                await lanes.run(apply, many, large=many == [wait])
        go.set()
        await asyncio.gather(*large)
        await lanes.run(apply, [wait], large=True)
        assert await lanes.run(apply, [len] * 99) == [5] * 99
        lanes.close()
        assert set(tools) == {"another"}
        return len(tools)

    assert asyncio.run(read()) == 17


def test_nothing_more_is_begun_for_whom_nobody_waits() -> None:
    order: list[str] = []

    async def read() -> None:
        lanes: TwoLanes[None] = TwoLanes(None, lambda: None, 16)
        began, go = threading.Event(), threading.Event()

        def first(_: None) -> None:
            began.set()
            go.wait()

        gone = asyncio.create_task(lanes.run(apply, [first, partial(say, order, "gone")]))
        await asyncio.to_thread(began.wait)
        gone.cancel()
        go.set()
        await lanes.run(apply, [partial(say, order, "next")])
        lanes.close()

    asyncio.run(read())
    assert order == ["next"]


class Held:
    """A server reads nothing until told to go on; counts what it has begun."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.began = 0

    def __call__(self, read: Callable[..., Any]) -> Callable[..., Any]:
        def later(*args: Any) -> Any:
            if threading.current_thread().name.startswith("weightpager-reading"):
                self.began += 1
                self.go.wait()
            return read(*args)

        return later

    def until_begun(self) -> None:
        while not self.began:
            time.sleep(0.005)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    found = Held()
    monkeypatch.setattr(ImageReader, "read", found(ImageReader.read))
    monkeypatch.setattr(TokenReader, "cut", found(TokenReader.cut))
    yield found
    found.go.set()


CASES = {"camera_bundle": ("warm", [png()] * 3), "assistant_bundle": ("weather", ["sun", "rain", "snow"])}
kinds = pytest.mark.parametrize("kind", list(CASES))


@contextmanager
def started(request: pytest.FixtureRequest, kind: str, **settings: Any) -> Iterator[tuple[Running, dict[str, Any]]]:
    task, given = CASES[kind]
    with serving(request.getfixturevalue(kind), Settings(admin_token=ADMIN, **settings)) as running:
        yield running, {"model": task, "input": given}


def ask(client: httpx.Client, body: dict[str, Any]) -> httpx.Response:
    return client.post("/v1/classifications", json=body)


@kinds
def test_places_are_taken_before_anything_is_read(request: pytest.FixtureRequest, held: Held, kind: str) -> None:
    with started(request, kind, queue=4) as (running, body), running.http() as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, client, body)
        held.until_begun()
        refused = ask(client, body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert refused.headers["retry-after"]
        assert "\nweightpager_queue_taken_texts 3.0\n" in client.get("/metrics").text
        many = ask(client, body | {"input": body["input"] * 2})
        assert (many.status_code, many.json()["error"]["message"][:20]) == (400, "expected at most 4 t")
        assert held.began == 1
        held.go.set()
        assert first.result().status_code == 200
        assert ask(client, body).status_code == 200


@kinds
def test_whoever_goes_away_leaves_the_rest_unread(request: pytest.FixtureRequest, held: Held, kind: str) -> None:
    with started(request, kind, queue=3) as (running, body):
        with running.post("/v1/classifications", body):
            held.until_begun()
        while running.service.queue._reserved:
            time.sleep(0.005)
        held.go.set()
        with running.http() as client:
            assert ask(client, body | {"input": body["input"][0]}).status_code == 200
        assert held.began == 2


@kinds
def test_reading_ends_with_the_requests_time(request: pytest.FixtureRequest, held: Held, kind: str) -> None:
    with started(request, kind, timeout=0.3) as (running, body), running.http() as client:
        late = ask(client, body)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
        assert not running.service.queue._reserved
        assert held.began == 1


@pytest.mark.slow
@kinds
def test_looking_on_and_the_admin_wait_for_no_reading(request: pytest.FixtureRequest, held: Held, kind: str) -> None:
    with started(request, kind) as (running, body), running.http(ADMIN) as client, ThreadPoolExecutor(40) as pool:
        asked = [pool.submit(ask, client, body) for _ in range(40)]
        while running.service.queue._reserved < 120:
            time.sleep(0.005)
        for path in ("/v1/models", "/status", "/metrics", "/health"):
            assert client.get(path).status_code == 200
        assert client.post("/admin/verify").status_code == 200
        assert client.post("/admin/prefetch", json={"task": body["model"]}).status_code == 200
        assert client.post("/admin/load", json={"task": body["model"]}).status_code == 200
        assert not any(answer.done() for answer in asked)
        held.go.set()
        assert {answer.result().status_code for answer in asked} == {200}


def test_too_many_pixels_are_refused_before_any_is_read(camera: Running, held: Held) -> None:
    with camera.http() as client:
        refused = ask(client, {"model": "warm", "input": [png(2896)] * 9})
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "invalid_image", "input")
    assert error["message"] == "expected images of at most 67108864 pixels together, found 75481344"
    assert not held.began


def jpeg_of_many_scans() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "JPEG", progressive=True)
    whole = buffer.getvalue()
    last = whole[whole.rfind(b"\xff\xda") : -2]
    return whole[:-2] + 1000 * last + b"\xff\xd9"


def png_of_many_texts() -> bytes:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for number in range(60):
        info.add_text(f"key{number}", "a" * 2**19, zip=True)
    buffer = BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (jpeg_of_many_scans(), "expected a JPEG of at most 32 scans, found 1010"),
        (png_of_many_texts(), "expected a PNG with at most 16 compressed texts, found 60"),
        (b"P3\n3000 2000\n255\n" + b"#\n" * 100_000, "expected an image in a binary form"),
    ],
)
def test_images_that_take_more_time_than_their_size_tells_are_refused(
    camera: Running, content: bytes, problem: str
) -> None:
    with camera.http() as client:
        refused = ask(client, {"model": "warm", "input": data_url(content)})
    assert refused.status_code == 400
    assert problem in refused.json()["error"]["message"]


def test_requests_with_many_images_leave_places_for_others(camera: Running, held: Held) -> None:
    many, one = ({"model": "warm", "input": given} for given in ([png()] * 100, png()))
    with camera.http() as client, ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, client, many) for _ in range(3)]
        while sum(answer.done() for answer in asked) < 2:
            time.sleep(0.005)
        single = pool.submit(ask, client, one)
        held.go.set()
        assert single.result().status_code == 200
        assert sorted(answer.result().status_code for answer in asked) == [200, 429, 429]
