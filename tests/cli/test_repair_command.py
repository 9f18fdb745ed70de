"""``verify --repair --from`` as a command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command import Command

PAGES = "pages-0000.safetensors"


@pytest.fixture
def damaged(assistant_bundle: Path, tmp_path: Path) -> Path:
    """A bundle with one damaged page, a page file that is too long, and a missing file."""
    copy = Path(shutil.copytree(assistant_bundle, tmp_path / "copy.bundle"))
    with (copy / PAGES).open("r+b") as file:
        file.seek(5000)
        file.write(b"\xff\x00\xff")
        file.seek(0, 2)
        file.write(b"more")
    (copy / "resident.safetensors").unlink()
    return copy


def test_a_bundle_is_mended(weightpager: Command, damaged: Path, assistant_bundle: Path) -> None:
    assert "--repair --from OTHER" in weightpager("verify", damaged).err
    found = weightpager("verify", damaged, "--repair", "--from", assistant_bundle)
    assert found.code == 0, found.err
    assert "mending" in found.err
    assert found.out.splitlines()[:3] == [
        "resident.safetensors: mended",
        f"{PAGES}: size and header mended",
        "pages mended: 0",
    ]
    assert "1 of 15 files and 1 of" in found.out
    assert found.out.endswith("pages mended: all well\n")
    again = weightpager("verify", damaged, "--repair", "--from", assistant_bundle, "--quiet")
    assert (again.code, again.err) == (0, "")
    assert "0 of 15 files" in again.out
    assert weightpager("verify", damaged).code == 0


def test_what_is_left_is_said(weightpager: Command, damaged: Path, assistant_bundle: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(assistant_bundle, tmp_path / "other.bundle"))
    (other / "resident.safetensors").write_bytes(b"")
    found = weightpager("verify", damaged, "--repair", "--from", other)
    assert found.code == 1
    assert "pages mended: 0" in found.out
    assert found.out.endswith("1 problems left\n")
    assert "resident.safetensors: file: expected a readable file" in found.err
    assert f"not mended: {other}: resident.safetensors: size: expected" in found.err
    assert "try another copy with --from, or copy the whole bundle again" in found.err


def test_what_no_hash_shows_is_left_to_verify(weightpager: Command, damaged: Path, assistant_bundle: Path) -> None:
    (damaged / "model/surprise.json").write_text("{}")
    found = weightpager("verify", damaged, "--repair", "--from", assistant_bundle, "--json")
    assert found.code == 1
    facts = json.loads(found.out)
    assert (facts["mended_files"], facts["mended_frames"]) == (["resident.safetensors"], [PAGES])
    assert facts["mended_pages"] == [0]
    assert facts["files"] == 15
    assert ["surprise.json" in problem for problem in facts["problems"]] == [True]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--repair"], 2, "name it with --from OTHER"),
        (["--from", "OTHER"], 2, "add --repair to mend the bundle"),
        (["--repair", "--from", "nowhere"], 1, "nowhere: expected a bundle directory to mend from, found none"),
        (["--repair", "--from", "BUNDLE"], 2, "name another copy"),
    ],
)
def test_options_that_do_not_go_together_are_explained(
    weightpager: Command, damaged: Path, assistant_bundle: Path, options: list[str], code: int, words: str
) -> None:
    places = {"OTHER": assistant_bundle, "BUNDLE": damaged}
    found = weightpager("verify", damaged, *(places.get(word, word) for word in options))
    assert found.code == code
    assert words in found.err
    assert not (damaged / "resident.safetensors").exists()


def test_a_damaged_manifest_is_explained(weightpager: Command, damaged: Path, assistant_bundle: Path) -> None:
    (damaged / "manifest.json").write_bytes(b"{}")
    found = weightpager("verify", damaged, "--repair", "--from", assistant_bundle)
    assert found.code == 1
    assert "copy the whole bundle again" in found.err
