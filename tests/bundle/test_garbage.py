"""Garbage collection on damaged storage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from weightpager.bundle import Bundle
from weightpager.bundle.garbage import collect
from weightpager.errors import PageCorruptError


def test_a_damaged_page_ends_a_collection_and_nothing_changes(assistant_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged.bundle"
    shutil.copytree(assistant_bundle, path)
    bundle, pages = Bundle.open(path), next(path.glob("pages-*"))
    content = bytearray(pages.read_bytes())
    for start in range(4096, len(content), bundle.page_bytes):  # the header takes 4096 bytes
        content[start] ^= 1
    pages.write_bytes(content)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(PageCorruptError):
        collect(path, drop=list(bundle.tasks)[1:])
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["damaged.bundle"]
