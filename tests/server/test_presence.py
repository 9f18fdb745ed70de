"""Servers are found as long as they live, and no longer."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from weightpager.server.presence import Presence, announced, running, usual_folder


def presence(number: int = 0) -> Presence:
    return Presence(url=f"http://127.0.0.1:{8000 + number}", pid=os.getpid(), bundle="/a.bundle", started=float(number))


def test_a_server_is_found_while_it_runs(tmp_path: Path) -> None:
    folder = tmp_path / "not yet" / "there"
    assert running(folder) == []
    with announced(presence(2), folder), announced(presence(1), folder):
        assert running(folder) == [presence(1), presence(2)]
    assert list(folder.iterdir()) == []


def test_a_killed_server_is_forgotten(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom weightpager.server.presence import Presence, announced\n"
        "found = Presence(url='http://x', pid=1, bundle='b', started=0)\n"
        f"with announced(found, Path({str(tmp_path / 'here')!r})):\n    print(1, flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        assert [found.url for found in running(tmp_path / "here")] == ["http://x"]
        server.send_signal(signal.SIGKILL)
    assert running(tmp_path / "here") == []
    assert list((tmp_path / "here").iterdir()) == []


def test_other_files_are_no_servers(tmp_path: Path) -> None:
    folder = tmp_path / "here"
    with announced(presence(), folder):
        os.mkfifo(folder / "fifo.server")
        (folder / "folder.server").mkdir()
        (folder / "text.server").write_text("{")
        assert running(folder) == [presence()]


def test_a_folder_that_others_may_write_to_is_not_believed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    folder.chmod(0o777)
    with caplog.at_level(logging.WARNING), announced(presence(), folder):
        assert "won't find this server" in caplog.text
        assert list(folder.iterdir()) == []
    with pytest.raises(PermissionError, match="nobody else may write"):
        running(folder)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(PermissionError):
        running(tmp_path / "link")


def test_where_servers_are_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert usual_folder() == Path("/run/user/7/weightpager")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert str(os.getuid()) in usual_folder().name
