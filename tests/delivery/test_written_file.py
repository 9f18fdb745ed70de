"""Files of a repository are for web servers, which run as somebody else."""

from __future__ import annotations

import os
from pathlib import Path

from weightpager.delivery.publishing.roles import write_file


def test_everybody_may_read_a_file_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_file(tmp_path / "targets.json", [b"{}"])
    finally:
        os.umask(before)
    assert (tmp_path / "targets.json").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "targets.json").read_bytes() == b"{}"
