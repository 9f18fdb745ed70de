"""Pictures that prompts name by their address, from a real HTTP server on this machine."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_serving_pictures import asking, data_url, part, post, refused, words

import tiny
from running import Running, serving
from weightpager.errors import ConfigError, ImageError, QueueFullError
from weightpager.server.inputs import picture_hosts
from weightpager.server.inputs.picture_hosts import AllowedHost, PictureHosts
from weightpager.server.scheduling.settings import Policy, Settings

MOST = 10_000


class Camera(BaseHTTPRequestHandler):
    """Gives its server's ``frame``, and what a bad server would."""

    def do_GET(self) -> None:
        frame: bytes = self.server.frame  # type: ignore[attr-defined]
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/frame.png")
            self.end_headers()
        elif self.path == "/endless":
            self._begin(10**9)
            while not self.wfile.closed:
                self.wfile.write(bytes(4096))
        elif self.path == "/slow":
            self._begin(1000)
            for _ in range(1000):
                self.wfile.write(b"a")
                self.wfile.flush()
                time.sleep(0.05)
        elif self.path == "/cut":
            self._begin(len(frame) + 7)
            self.wfile.write(frame)
        elif self.path == "/frame.png":
            self._begin(len(frame))
            self.wfile.write(frame)
        else:
            self.send_error(404)

    def _begin(self, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *_: object) -> None: ...

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:  # a client that has had enough
            return


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.picture(tmp_path_factory.mktemp("frames") / "red.png", "red", "asked", (44, 40))


@pytest.fixture(scope="module")
def camera(frame: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Camera)
    server.daemon_threads = True
    server.frame = frame.read_bytes()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def watcher(watcher_bundle: Path, camera: str) -> Iterator[Running]:
    settings = Settings(policy=Policy(batch=1), picture_hosts=(AllowedHost.parse(camera),))
    with serving(watcher_bundle, settings) as running:
        yield running


def test_a_camera_is_asked_about_as_its_frame_is(watcher: Running, camera: str, frame: Path) -> None:
    address, url = f"http://{camera}/frame.png", data_url(frame.read_bytes())
    answers = []
    for both in ((url, url), (address, url), (url, address), (address.upper().replace("FRAME.PNG", "frame.png"), url)):
        status, found = post(watcher, "chat/completions", asking(*map(part, both), words("red")))
        assert status == 200, found
        answers.append(found["choices"][0]["message"])
    assert answers == [answers[0]] * 4


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("other.png", "found HTTP 404"),
        ("moved", "found HTTP 302"),
        ("cut", "whole picture|7 more bytes"),
        ("endless", "at most 4194304 bytes, found more"),
    ],
)
def test_a_camera_that_gives_no_picture_is_named(watcher: Running, camera: str, path: str, expected: str) -> None:
    error = refused(watcher, asking(part(f"http://{camera}/{path}"), words("red")))
    assert re.search(expected, error["message"])
    assert error["code"] == "invalid_image"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/frame.png",
        "https://{camera}.example/frame.png",
        "http://localhost/frame.png",
        "http://{camera}@example.org/frame.png",
        "http://user:word@{camera}/frame.png",
        "http://[::1/frame.png",
        "http:///frame.png",
    ],
)
def test_other_hosts_are_refused(watcher: Running, camera: str, url: str) -> None:
    error = refused(watcher, asking(part(url.format(camera=camera)), words("red")))
    assert re.search(r"--picture-host allows \(127|without a user's name|expected an address", error["message"])


def fetched(hosts: PictureHosts, urls: list[str]) -> list[bytes]:
    return asyncio.run(hosts.fetch(urls))


def test_slow_cameras_are_given_up(camera: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_hosts, "SECONDS", 0.5)
    hosts = PictureHosts([AllowedHost.parse(camera)], most_bytes=MOST, most=2)
    with pytest.raises(ImageError, match="within 0.5 seconds"):
        fetched(hosts, [f"http://{camera}/slow"])
    hosts.close()


def test_only_so_many_are_waited_for(camera: str, frame: Path) -> None:
    hosts, url = PictureHosts([AllowedHost.parse(camera)], most_bytes=MOST, most=2), f"http://{camera}/frame.png"
    with pytest.raises(QueueFullError, match="at most 2"):
        fetched(hosts, [url] * 3)
    assert fetched(hosts, [url] * 2) == [frame.read_bytes()] * 2
    hosts.close()


def test_a_camera_that_is_gone_is_named() -> None:
    hosts = PictureHosts([AllowedHost.parse("127.0.0.1:1")], most_bytes=MOST, most=2)
    with pytest.raises(ImageError, match="found no answer"):
        fetched(hosts, ["http://127.0.0.1:1/frame.png"])
    hosts.close()


@pytest.mark.parametrize(
    ("text", "name", "port"),
    [("Camera.local", "camera.local", None), ("10.0.0.7:8080", "10.0.0.7", 8080), ("[fe80::1]:81", "[fe80::1]", 81)],
)
def test_hosts_are_stated_with_or_without_a_port(text: str, name: str, port: int | None) -> None:
    assert AllowedHost.parse(text) == AllowedHost(name, port)


@pytest.mark.parametrize("text", ["", "http://camera", "camera/", "camera:0", "camera:65536", "a b", "me@camera", "*"])
def test_anything_else_is_no_host(text: str) -> None:
    with pytest.raises(ConfigError, match="--picture-host: expected HOST or HOST:PORT"):
        AllowedHost.parse(text)
