"""Garbage collection on damaged storage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from blake3 import blake3
from msgspec.structs import replace

from weightpager.backends.verify import verify
from weightpager.bundle import Bundle
from weightpager.bundle.format import page_file
from weightpager.bundle.format.names import MANIFEST, MANIFEST_HASH
from weightpager.bundle.garbage import collect
from weightpager.errors import PageCorruptError


def test_a_page_file_without_pages_is_left_out(assistant_bundle: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(assistant_bundle, tmp_path / "crafted.bundle"))
    bundle = Bundle.open(path)
    counts = bundle.manifest.page_files
    page_file.frame(path / page_file.file_name(len(counts)), 0, bundle.page_bytes)
    text = replace(bundle.manifest, page_files=[*counts, 0]).dump()
    (path / MANIFEST).write_bytes(text)
    (path / MANIFEST_HASH).write_bytes(blake3(text).hexdigest().encode() + b"\n")
    collect(path, drop=list(bundle.tasks)[1:])
    assert 0 not in Bundle.open(path).manifest.page_files
    assert verify(path).problems == ()
    assert not (path / page_file.file_name(len(counts))).exists()


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
