"""What reads inputs is read late, when the bundle may have been replaced."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import weightpager as wp
from benchmarks.fuzz.sealing import rewrite_file
from weightpager.errors import BundleError, BundleFormatError


def test_a_bundle_that_was_replaced_is_not_called_damaged(writer_bundle: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(writer_bundle, tmp_path / "w.bundle"))
    with wp.Engine.from_pretrained(path) as engine:
        settings = json.loads((path / "model/tokenizer_config.json").read_text())
        rewrite_file(path, "model/tokenizer_config.json", json.dumps(settings | {"x": 1}).encode())
        with pytest.raises(BundleError, match=r"w\.bundle: .* found another one in its place; call engine\.reload"):
            engine.predict("numbers", ["one"])
    with wp.Engine.from_pretrained(path) as engine:
        assert engine.predict("numbers", ["one"])


def test_a_damaged_tokenizer_is_called_damaged(writer_bundle: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(writer_bundle, tmp_path / "w.bundle"))
    with wp.Engine.from_pretrained(path) as engine:
        (path / "model/tokenizer_config.json").write_text("{}")
        with pytest.raises(BundleFormatError, match="copy it again"):
            engine.predict("numbers", ["one"])
