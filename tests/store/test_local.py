"""Pages from a bundle's own files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.fuzz.sealing import rewrite_pages
from weightpager.bundle import Bundle
from weightpager.bundle.format import page_file
from weightpager.errors import BundleError
from weightpager.store import LocalStore


def test_files_of_a_bundle_that_has_taken_the_place_of_the_opened_one_are_refused(
    assistant_bundle: Path, tmp_path: Path
) -> None:
    path, other = (Path(shutil.copytree(assistant_bundle, tmp_path / name)) for name in ("a.bundle", "b.bundle"))
    bundle, pages = Bundle.open(path), page_file.file_name(0)
    content = (other / pages).read_bytes()
    rewrite_pages(other, pages, 0, content[: -bundle.page_bytes] + bytes(bundle.page_bytes))  # of the same size
    LocalStore(bundle).close()
    path.rename(tmp_path / "old.bundle")
    other.rename(path)
    with pytest.raises(BundleError, match="found another in its place"):
        LocalStore(bundle)
    LocalStore(Bundle.open(path)).close()
