from __future__ import annotations

import json
import logging
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from command import Command
from running import ADMIN, TOKEN, serving
from weightpager.server.scheduling.settings import Settings


def test_top_shows_tasks_and_switches(weightpager: Command, assistant_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    with serving(assistant_bundle, Settings(token=TOKEN)) as running:
        running.service.worker.between(lambda: running.service.worker.enter("weather")).result()
        found = weightpager("top", running.url, "--once", "--token-file", tmp_path / "token")
        assert found.code == 0
        for words in ("weather", "100%", "█", "latest of 0 switches", "nothing is prefetched", "next: ", "log loss"):
            assert words in found.out
        state = json.loads(weightpager("top", running.url, "--json", "--token-file", tmp_path / "token").out)
        assert state["current"] == "weather"
        locked = weightpager("top", running.url, "--once")
        assert locked.code == 1
        assert "--token-file" in locked.err


def test_top_says_that_there_is_no_server(weightpager: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    found = weightpager("top", f"http://127.0.0.1:{port}", "--once")
    assert found.code == 1
    assert "found none: Connection refused; 'weightpager ps' lists" in found.err
    assert weightpager("top", "file:///etc/passwd", "--once").code == 2
    assert weightpager("top", "--once", "--token-file", "nowhere").code == 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b'HTTP/1.0 200 OK\r\n\r\n{"status": "ok"}', "found another answer: version: Field required"),
        (b"HTTP/1.0 200 OK\r\n\r\n[1]", "found another answer: Input should be an object"),
        (b"HTTP/1.0 200 OK\r\n\r\n<html>", "found another answer: Invalid JSON"),
        (b"HTTP/1.0 200 OK\r\n\r\n" + b"[" * 100_000, "found another answer: Invalid JSON"),
        (b"HTTP/1.0 404 Not Found\r\n\r\n", "found status 404"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{}", "found no HTTP: 'IncompleteRead"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "found no HTTP: 'SSH-2.0-OpenSSH_9.6'"),
        (b"\x1b[2J" * 100 + b"\r\n", "found no HTTP: '\\x1b[2J"),
        (b"", "found no HTTP: 'Remote end closed connection"),
    ],
)
def test_top_says_that_another_server_is_there(weightpager: Command, answer: bytes, words: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_answer, args=(server, answer))
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        found = weightpager("top", url, "--once")
        thread.join()
    assert (found.code, found.out) == (1, "")
    assert f"expected a weightpager server at {url}, {words}" in found.err
    assert len(found.err) < 250


def _answer(server: socket.socket, answer: bytes) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(2**16)
        connection.sendall(answer)


@pytest.mark.parametrize(
    "url", ["http://a b", "http://[::1", "http://", "http://a:b", "http://a:99999", "http://a\n", "http://ä", "a:8000"]
)
def test_top_wants_a_url(weightpager: Command, url: str) -> None:
    found = weightpager("top", url, "--once")
    assert found.code == 2
    assert f"expected the URL of a server, such as http://127.0.0.1:8000, found {url!r}" in found.err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--budget", "1KiB"], 1, "smallest budget that would do"),
        (["--token-file", "nowhere"], 2, "found: No such file or directory; '(umask 077; openssl rand"),
        (["--remote-admin"], 2, "expected an admin token"),
        (["--ray", "auto"], 2, "--ray: expected it with --replicas"),
        (["--max-body", "much"], 2, "--max-body: expected a number with a unit, such as 512MiB"),
        (["--kv-reserve", "much"], 2, "kv_reserve: expected a number with a unit"),
        (["--order", "random"], 2, "grouped"),
        (["--host", "192.0.2.1"], 2, "expected a free port at 192.0.2.1:0"),
        (["--real-time", "wether"], 2, "Did you mean 'weather'"),
    ],
)
def test_a_server_that_cannot_start_says_why(
    weightpager: Command, assistant_bundle: Path, options: list[str], code: int, words: str
) -> None:
    loggers = [logging.getLogger(name) for name in ("weightpager", "uvicorn")]
    before = [(list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    found = weightpager("serve", assistant_bundle, "--port", "0", *options)
    assert found.code == code
    assert words in found.err
    assert "Traceback" not in found.err
    assert [(logger.handlers, logger.level, logger.propagate) for logger in loggers] == before


def test_a_taken_port_is_named(weightpager: Command, assistant_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = weightpager("serve", assistant_bundle, "--port", port)
    assert found.code == 2
    assert f"127.0.0.1:{port}" in found.err
    assert "--port 0 takes any free port" in found.err


@pytest.mark.slow
def test_top_gives_a_pipe_each_look(assistant_bundle: Path) -> None:
    with serving(assistant_bundle) as running:
        looks = f"{sys.executable} -m weightpager top {running.url} --interval 0.1"
        command = f"{looks} | grep --line-buffered 'latest of' | head -n 3"
        found = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, timeout=60)
    assert (found.stdout.count("\n"), found.stderr) == (3, "")


@pytest.mark.slow
def test_a_server_at_a_unix_socket(
    weightpager: Command, assistant_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WEIGHTPAGER_BACKEND")  # the usual one begins ten times sooner
    path = tmp_path / "own.sock"
    with socket.socket(socket.AF_UNIX) as dead:  # its server was killed
        dead.bind(str(path))
    command = [sys.executable, "-m", "weightpager", "serve", str(assistant_bundle), "--uds", str(path)]
    command += ["--log", "text", "--admin-token-file", str(tmp_path / "admin")]
    (tmp_path / "admin").write_text(ADMIN)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        assert server.stdout.readline().startswith(f"unix:{path} serves ")
        while "startup complete" not in server.stderr.readline():
            pass
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://box") as client:
            asked = {"model": "weather", "input": "a b c"}
            assert client.post("/v1/classifications", json=asked).json()["data"][0]["label"]
            budget = {"budget": "1MiB"}
            admin = {"Authorization": f"Bearer {ADMIN}"}
            assert client.post("/admin/budget", json=budget, headers=admin).status_code == 200
            passed_on = admin | {"X-Forwarded-For": "192.0.2.1"}
            assert client.post("/admin/budget", json=budget, headers=passed_on).status_code == 403
        assert json.loads(weightpager("top", f"unix:{path}", "--json").out)["current"] == "weather"
        taken = weightpager("serve", assistant_bundle, "--uds", path)
        assert (taken.code, "Address already in use; --uds takes one that nothing has" in taken.err) == (2, True)
        server.send_signal(signal.SIGTERM)
        server.communicate()
    assert not path.exists()
    assert "found none: No such file or directory" in weightpager("top", f"unix:{path}", "--once").err


def test_a_file_in_the_place_of_a_socket_stays(weightpager: Command, assistant_bundle: Path, tmp_path: Path) -> None:
    kept = tmp_path / "notes.txt"
    kept.write_text("mine")
    refused = weightpager("serve", assistant_bundle, "--uds", kept)
    assert (refused.code, kept.read_text()) == (2, "mine")
    long = weightpager("serve", assistant_bundle, "--uds", tmp_path / ("a" * 200))
    assert (long.code, "AF_UNIX path too long" in long.err) == (2, True)


@pytest.mark.parametrize("verb", ["serve", "top"])
def test_serving_has_help_with_an_example(weightpager: Command, verb: str) -> None:
    found = weightpager(verb, "--help")
    assert found.code == 0
    assert f"weightpager {verb}" in found.out
    assert "Example" in found.out


def test_the_extra_is_named_where_it_is_missing(assistant_bundle: Path) -> None:
    code = (
        f"import sys; sys.modules['fastapi'] = None; sys.argv = ['weightpager', 'serve', {str(assistant_bundle)!r}]\n"
        "from weightpager.cli import main; main()"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "weightpager[serve]" in found.stderr
