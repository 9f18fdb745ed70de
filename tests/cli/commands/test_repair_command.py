"""``verify --repair --from`` as a command."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from benchmarks.fuzz.sealing import rewrite_file, rewrite_manifest
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
    assert "1 of 14 files and 1 of" in found.out
    assert found.out.endswith("pages mended: all well\n")
    again = weightpager("verify", damaged, "--repair", "--from", assistant_bundle, "--quiet")
    assert (again.code, again.err) == (0, "")
    assert "0 of 14 files" in again.out
    assert weightpager("verify", damaged).code == 0


def test_what_is_left_is_said(weightpager: Command, damaged: Path, assistant_bundle: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(assistant_bundle, tmp_path / "other.bundle"))
    (other / "resident.safetensors").write_bytes(b"")
    found = weightpager("verify", damaged, "--repair", "--from", other)
    assert found.code == 1
    assert "pages mended: 0" in found.out
    assert found.out.endswith("1 problem left\n")
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
    assert facts["files"] == 14
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


@pytest.mark.parametrize("closed_by", ["placement.safetensors", "page-index.safetensors", "permutations.safetensors"])
def test_all_damage_is_named_though_the_bundle_cannot_be_opened(
    weightpager: Command, damaged: Path, closed_by: str
) -> None:
    os.truncate(damaged / PAGES, (damaged / PAGES).stat().st_size - len(b"more"))
    (damaged / closed_by).unlink()
    (damaged / "model/surprise.json").write_text("{}")
    found = weightpager("verify", damaged, "--json")
    assert found.code == 1
    facts = json.loads(found.out)
    names = ["resident.safetensors", closed_by, "model/surprise.json"]
    if closed_by == "page-index.safetensors":
        assert facts["pages"] == 0
    else:
        names.append(f"{PAGES}: page 0 (place 0)")
        assert facts["pages"] > 1
    for name in names:
        assert sum(problem.startswith(name) for problem in facts["problems"]) == 1
    assert len(facts["problems"]) == len(names)
    assert facts["files"] == 14


def test_pages_of_a_file_that_is_cut_short_are_compared(weightpager: Command, damaged: Path) -> None:
    os.truncate(damaged / PAGES, (damaged / PAGES).stat().st_size - len(b"more") - 1)
    found = weightpager("verify", damaged)
    assert "3 problems" in found.out
    assert [line.partition(": expected")[0] for line in found.err.splitlines() if line.startswith(PAGES)] == [
        f"{PAGES}: size",
        f"{PAGES}: page 0 (place 0): its bytes do not match its BLAKE3 hash",
    ]


def test_advice_is_what_helps(weightpager: Command, assistant_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(assistant_bundle, tmp_path / "copy.bundle"))

    def advised(*options: object) -> str:
        """All that is said after the problem itself."""
        found = weightpager("verify", copy, "--quiet", *options)
        assert found.code == 1
        return found.err.partition(": ")[2]

    (copy / "model/evil.py").write_text("")
    for options in ((), ("--repair", "--from", assistant_bundle)):
        said = advised(*options)
        assert "an extra file; remove it" in said
        assert not any(words in said for words in ("--repair", "--from", "copy the whole", "compile"))
    (copy / "model/evil.py").unlink()
    (copy / "resident.safetensors").unlink()
    assert "--repair --from OTHER" in advised()
    config = json.loads((copy / "model/config.json").read_bytes())
    rewrite_file(copy, "model/config.json", json.dumps(config | {"auto_map": {"AutoConfig": "evil.Evil"}}).encode())
    assert "--repair --from OTHER" in advised()
    assert "compile the bundle again" in advised()
    assert "--repair" not in advised("--repair", "--from", assistant_bundle)
    (copy / "manifest.json").unlink()
    assert "copy the whole bundle again" in advised()
    assert "--repair" not in advised()
    assert "'weightpager compile' makes one" in weightpager("verify", tmp_path).err
    assert "copy the whole" not in weightpager("verify", tmp_path).err


def test_a_manifest_of_another_version_is_not_copied_again(weightpager: Command, damaged: Path) -> None:
    rewrite_manifest(damaged, lambda manifest: manifest.update(version=99))
    found = weightpager("verify", damaged)
    assert (found.code, "version" in found.err, "compile the bundle again" in found.err) == (1, True, True)
    assert "copy the whole" not in found.err
