"""Errors of a bundle's files name the bundle, and what to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import weightpager as wp
from weightpager.backends.verify import verify
from weightpager.bundle import Bundle
from weightpager.errors import BundleFormatError, PageCorruptError

PAGES = "pages-0000.safetensors"


@pytest.fixture
def copy(assistant_bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(assistant_bundle, tmp_path / "a.bundle")
    return tmp_path / "a.bundle"


def test_a_file_that_was_cut_short(copy: Path) -> None:
    whole = (copy / PAGES).stat().st_size
    with (copy / PAGES).open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(BundleFormatError) as found:
        Bundle.open(copy)
    plain = f"{PAGES}: size: expected {whole} bytes, found 1000 bytes"
    mend = f"'weightpager verify {copy} --repair --from COPY'"
    assert str(found.value) == f"{copy}: {plain}; copy it again, or {mend}"
    assert [problem for problem in verify(copy).problems if "size" in problem] == [plain]


def test_a_manifest_that_was_damaged(copy: Path) -> None:
    (copy / "manifest.json").write_text("{}")
    with pytest.raises(BundleFormatError) as found:
        Bundle.open(copy)
    assert str(found.value).startswith(f"{copy}: manifest.json: BLAKE3: expected ")
    assert str(found.value).endswith("; copy the whole bundle again")


def test_a_file_that_is_read_when_an_engine_opens(copy: Path) -> None:
    (copy / "resident.safetensors").unlink()
    with pytest.raises(BundleFormatError, match="copy it again") as found:
        wp.Engine.from_pretrained(copy)
    assert str(found.value).startswith(f"{copy}: resident.safetensors: file: expected a readable file, found No such")


def test_what_no_copy_mends_is_said_without_advice() -> None:
    error = BundleFormatError("manifest.json", "version", 2, 3)
    error.bundle = Path("/srv/a.bundle")
    assert str(error) == "/srv/a.bundle: manifest.json: version: expected 2, found 3"


def test_a_page_that_was_damaged(copy: Path) -> None:
    size = (copy / PAGES).stat().st_size
    with (copy / PAGES).open("r+b") as file:
        file.seek(4096)  # behind the header
        file.write(bytes(size - 4096))
    with wp.Engine.from_pretrained(copy) as engine:
        for load in (lambda: engine.activate("animal"), lambda: engine.predict("animal", ["red cat"])):
            with pytest.raises(PageCorruptError) as found:
                load()
            assert str(found.value).startswith(f"{copy}: on load: page ")
            assert f"'weightpager verify {copy} --repair --from COPY'" in str(found.value)
