"""Pages from a bundle's own files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.fuzz.sealing import rewrite_pages
from weightpager.bundle import Bundle
from weightpager.bundle.format import page_file
from weightpager.errors import BundleError, StoreError
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


def test_files_that_are_not_needed_any_more_are_closed_and_read_no_more(assistant_bundle: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(assistant_bundle, tmp_path / "a.bundle"))
    store = LocalStore(Bundle.open(path), direct=False)
    descriptor, view = int(store.sources(np.array([0])).descriptors[0]), memoryview(bytearray(store._page_bytes))
    store.close_but(np.array([3]))
    store.read(3, [view])
    store.close_but(np.array([], np.int64))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    with pytest.raises(StoreError, match="page 3: its file has been closed"):
        store.read(3, [view])
    store.close()
