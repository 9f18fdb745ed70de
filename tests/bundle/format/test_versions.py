"""Bundles of other versions are refused, with what to do about it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.fuzz.sealing import rewrite_manifest
from weightpager.backends.verify import verify
from weightpager.bundle import Bundle
from weightpager.errors import BundleFormatError


@pytest.fixture
def other(assistant_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(assistant_bundle, tmp_path / "a.bundle"))


@pytest.mark.parametrize("version", [0, 4, "3", 3.0, True, None])
def test_other_versions_are_refused(other: Path, version: object) -> None:
    rewrite_manifest(other, lambda manifest: manifest.update(version=version))
    with pytest.raises(BundleFormatError, match="version: expected"):
        Bundle.open(other)


@pytest.mark.parametrize(("version", "remedy"), [(2, "compile the bundle again"), (4, "a newer weightpager")])
def test_a_refusal_says_what_to_do(other: Path, version: int, remedy: str) -> None:
    rewrite_manifest(other, lambda manifest: manifest.update(version=version))
    with pytest.raises(BundleFormatError, match=f"version: expected 3; {remedy}.*, found {version}"):
        Bundle.open(other)
    assert any(remedy in problem for problem in verify(other).problems)
