"""Files and directories that are there, aren't, or that nobody may look at."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from weightpager.machine.paths import has_directory, has_file

_LOOK = """
import os, sys
from pathlib import Path
from weightpager.machine.paths import has_directory, has_file
os.setuid(65534)
sys.exit(has_file(Path(sys.argv[1])) or has_directory(Path(sys.argv[1])))
"""


def test_what_is_there_is_told_from_what_is_not(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert (has_file(tmp_path / "file"), has_directory(tmp_path / "file")) == (True, False)
    assert (has_file(tmp_path), has_directory(tmp_path)) == (False, True)
    for name in ("none", "file/below", "a" * 300, "a\0b"):
        assert (has_file(tmp_path / name), has_directory(tmp_path / name)) == (False, False)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_where_nobody_may_look_there_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "mine" / "file").write_text("mine")
    subprocess.run([sys.executable, "-c", _LOOK, str(tmp_path / "mine" / "file")], check=True)
