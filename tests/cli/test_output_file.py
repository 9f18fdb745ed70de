"""Files that ``bench`` and ``demo`` write when all is measured, and output that a shell sends to a file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from command import Command


@pytest.fixture(params=["bench", "demo"])
def arguments(request: pytest.FixtureRequest, assistant_bundle: Path) -> list[object]:
    """A command up to the file's name."""
    return {"bench": ["bench", assistant_bundle, "--out"], "demo": ["demo", "--out"]}[request.param]


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(
    weightpager: Command, arguments: list[object], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "no" / "file")
    refused = {
        tmp_path: "expected a file to write, found the directory",
        tmp_path / "no" / "file": f"{tmp_path / 'no'} does not exist",
        tmp_path / "link": f"{tmp_path / 'no'} does not exist",
        tmp_path / "file" / "file": f"{tmp_path / 'file'} does not exist",
        tmp_path / ("a" * 300): "File name too long",
    }
    for path, words in refused.items():
        found = weightpager(*arguments, path)
        assert (found.code, found.out) == (2, "")
        assert words in found.err
        assert "Traceback" not in found.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_that_may_not_be_written_is_refused(
    weightpager: Command, arguments: list[object], tmp_path: Path
) -> None:
    (tmp_path / "file").touch(mode=0o400)
    tmp_path.chmod(0o500)
    for name in ("file", "new"):
        found = weightpager(*arguments, tmp_path / name)
        assert (found.code, "may not be written to" in found.err) == (2, True)


def test_what_was_measured_is_shown_though_the_storage_refuses_the_file(
    weightpager: Command, assistant_bundle: Path
) -> None:
    found = weightpager("bench", assistant_bundle, "--quick", "-m", "ours_unaligned", "--out", "/dev/full")
    assert found.code == 2
    assert "skipped: " in found.out
    assert "out: cannot write /dev/full: No space left on device" in found.err


def test_output_that_a_full_disk_refuses_is_said_in_a_line() -> None:
    with Path("/dev/full").open("w") as full:
        found = subprocess.run(
            [sys.executable, "-m", "weightpager", "schema"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert found.returncode == 1
    assert found.stderr == "error: cannot write the output: No space left on device\n"


@pytest.mark.parametrize("coding", ["utf-8", "ascii"])
def test_what_the_output_cannot_show_is_escaped(tmp_path: Path, coding: str) -> None:
    os.mkdir(os.fsencode(tmp_path) + b"/\xff.bundle")  # noqa: PTH102 - from a stick of another system
    found = subprocess.run(
        [sys.executable, "-m", "weightpager", "ls", tmp_path],
        env={**os.environ, "PYTHONIOENCODING": coding, "COLUMNS": "300"},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    assert "\\udcff.bundle" in found.stdout
