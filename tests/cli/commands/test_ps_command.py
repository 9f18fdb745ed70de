from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from command import Command
from running import TOKEN, serving
from weightpager.server.presence import Presence, announced
from weightpager.server.scheduling.settings import Settings


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def test_ps_says_where_servers_listen_and_what_they_do(
    weightpager: Command, assistant_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(TOKEN)
    with serving(assistant_bundle, Settings(token=TOKEN), budget="1MiB") as server:
        server.service.worker.between(lambda: server.service.worker.enter("weather")).result()
        here = Presence(url=server.url, pid=os.getpid(), bundle=str(assistant_bundle), started=server.service.started)
        with announced(here):
            [row] = json.loads(weightpager("ps", "--json", "--token-file", tmp_path / "token").out)
            assert (row["url"], row["current"], row["budget"]) == (server.url, "weather", 2**20)
            assert (row["waiting"], row["problem"]) == (0, None)
            shown = weightpager("ps", "--token-file", tmp_path / "token")
            assert server.url in shown.out
            assert "weather" in shown.out
            locked = weightpager("ps")
            assert (locked.code, server.url in locked.out, "--token-file" in locked.err) == (0, True, True)


def test_no_server_is_no_error(weightpager: Command) -> None:
    found = weightpager("ps")
    assert (found.code, "no server" in found.out, "weightpager serve" in found.err) == (0, True, True)
    assert json.loads(weightpager("ps", "--json").out) == []


@pytest.mark.slow
def test_serve_is_found_until_it_ends(
    weightpager: Command, assistant_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WEIGHTPAGER_BACKEND")  # the usual one begins ten times sooner
    command = [sys.executable, "-m", "weightpager", "serve", str(assistant_bundle), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        assert "serves" in server.stdout.readline()
        for line in server.stderr:
            if "startup complete" in line:
                break
        [row] = json.loads(weightpager("ps", "--json").out)
        assert (row["pid"], row["bundle"], row["problem"]) == (server.pid, str(assistant_bundle), None)
        server.send_signal(signal.SIGTERM)
        server.communicate()
    assert json.loads(weightpager("ps", "--json").out) == []
