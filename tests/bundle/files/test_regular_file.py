"""Files are opened whole or not at all, whatever moment Ctrl-C comes."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from interrupted import Interrupted, Moments
from weightpager.bundle.files.regular_file import open_regular
from weightpager.machine.storage import DirectFile


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a file that nobody got closes itself
@pytest.mark.parametrize("opened", [open_regular, DirectFile])
def test_ctrl_c_is_no_damaged_file_and_leaves_none_open(opened: type[DirectFile], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    before = os.listdir("/proc/self/fd")
    with Moments(0) as moments:
        for _ in range(3000):
            with suppress(Interrupted):
                moments("open", lambda: opened(path).close())
    assert moments.times > 100
    assert os.listdir("/proc/self/fd") == before
