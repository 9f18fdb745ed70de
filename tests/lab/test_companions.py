"""Companions are compiled from the same preparation as their bundle, with other settings."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from weightpager.compiler import pipeline
from weightpager.compiler.resume.journal import CompileRun
from weightpager_lab import companions
from weightpager_lab.companions import COMPANIONS, path_in


class Asked:
    """A preparation that only says with which settings it is built."""

    def changed(self, **settings: Any) -> dict[str, Any]:
        return settings


def test_companions_differ_in_their_settings_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, dict[str, Any]] = {}
    monkeypatch.setattr(companions, "writing", lambda path, force: nullcontext(path))
    monkeypatch.setattr(pipeline, "build", lambda path, settings, _run: found.update({path.name: settings}))
    companions.build_companions(Asked(), tmp_path, CompileRun())  # type: ignore[arg-type]
    assert {settings.pop("compare") for settings in found.values()} == {"none"}
    assert found["all-blocks.bundle"].pop("recover").method == "none"
    assert found == {
        "unaligned.bundle": {"alignment": 0},
        "all-blocks.bundle": {"sparsity": 0},
        "one-mask.bundle": {"alignment": float("inf")},
    }


def test_a_folder_has_all_companions_or_none(tmp_path: Path, assistant_bundle: Path) -> None:
    for name in COMPANIONS:
        assert companions.companions_in(tmp_path) == {}
        path_in(tmp_path, name).symlink_to(assistant_bundle)
    assert list(companions.companions_in(tmp_path)) == list(COMPANIONS)
