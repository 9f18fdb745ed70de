"""A file that is written appears whole, or the one before stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from weightpager.bundle.files.new_file import beside, new_file


def test_it_takes_the_place_of_another_one(tmp_path: Path) -> None:
    path = tmp_path / "a.ids"
    for content in (b"first", b"second"):
        with new_file(path) as file:
            file.write(content)
            assert path.exists() == (content == b"second")
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt), new_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_replaced_and_never_followed(tmp_path: Path) -> None:
    path, other = tmp_path / "key.pem", tmp_path / "other"
    beside(path).symlink_to(other)
    with new_file(path, 0o600) as file:
        file.write(b"key")
    assert path.stat().st_mode & 0o777 == 0o600
    assert not path.is_symlink()
    assert not other.exists()


def test_an_unfinished_file_has_no_suffix_of_ours(tmp_path: Path) -> None:
    with new_file(tmp_path / "key.pem"):
        assert not list(tmp_path.glob("*.pem"))
        assert len(os.listdir(tmp_path)) == 1
