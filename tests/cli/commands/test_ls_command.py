from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import weightpager as wp
from command import Command


@pytest.fixture
def folder(assistant_bundle: Path, tmp_path: Path) -> Path:
    """A whole bundle, four damaged ones, and what is none."""
    shutil.copytree(assistant_bundle, tmp_path / "whole.bundle")
    for name in ("flipped", "short", "renamed.bundle", "odd"):
        shutil.copytree(assistant_bundle, tmp_path / name)
    manifest = tmp_path / "flipped" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"weather", b"wether", 1))
    os.truncate(tmp_path / "short" / "pages-0000.safetensors", 100)
    (tmp_path / "renamed.bundle" / "manifest.json").rename(tmp_path / "renamed.bundle" / "x")
    (tmp_path / "odd" / "resident.safetensors").unlink()
    (tmp_path / "odd" / "page-index.safetensors").unlink(missing_ok=True)
    (tmp_path / "odd" / "manifest.json").unlink()
    os.mkfifo(tmp_path / "odd" / "manifest.json")
    (tmp_path / "empty.bundle").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.bundle").write_text("")
    (tmp_path / "loop.bundle").symlink_to("loop.bundle")
    return tmp_path


def test_bundles_are_listed_and_damaged_ones_said_so(weightpager: Command, folder: Path) -> None:
    found = {Path(row["bundle"]).name: row for row in json.loads(weightpager("ls", folder, "--json").out)}
    assert list(found) == ["empty.bundle", "flipped", "odd", "renamed.bundle", "short", "whole.bundle"]
    whole = found.pop("whole.bundle")
    opened = wp.Bundle.open(folder / "whole.bundle")
    assert whole["problem"] is None
    assert (whole["tasks"], whole["page_bytes"]) == (list(opened.tasks), opened.page_bytes)
    assert whole["bytes"] == sum(path.stat().st_size for path in opened.path.rglob("*") if path.is_file())
    assert all(row["problem"] and row["tasks"] == [] for row in found.values())


def test_a_person_reads_what_is_wrong(weightpager: Command, folder: Path) -> None:
    found = weightpager("ls", folder)
    assert found.code == 0
    assert found.out.count("damaged") == 5
    assert "animal, weather, number, colour" in found.out
    assert "manifest.json: BLAKE3" in found.err
    assert "next: weightpager verify" in found.err


def test_the_next_step_can_be_pasted(weightpager: Command, tmp_path: Path) -> None:
    (tmp_path / "sp ace.bundle").mkdir()
    assert f"next: weightpager verify '{tmp_path / 'sp ace.bundle'}'\n" in weightpager("ls", tmp_path).err


def test_a_bundle_is_a_listing_of_itself(weightpager: Command, assistant_bundle: Path) -> None:
    [row] = json.loads(weightpager("ls", assistant_bundle, "--json").out)
    assert row["bundle"] == str(assistant_bundle)


def test_no_bundles_and_no_folder(weightpager: Command, tmp_path: Path) -> None:
    found = weightpager("ls", tmp_path)
    assert (found.code, "no bundles" in found.out) == (0, True)
    assert "weightpager init" in found.err
    assert weightpager("ls", tmp_path / "nowhere").code == 2
