"""How much storage a compile is said to need, against what it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tiny
import weightpager as wp
from weightpager.compiler import storage_estimate, task_file
from weightpager.compiler.model import dense_model as sources
from weightpager.compiler.resume.cache import Cache
from weightpager.compiler.resume.journal import journal_folder
from weightpager.compiler.storage_estimate import bundle_bytes, cache_bytes, journal_bytes
from weightpager.errors import CompileError

FINETUNE = {"method": "finetune", "steps": 6, "batch": 8}


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def validated(content: dict[str, Any]) -> dict[str, Any]:
    tasks = {name: task | {"validation": task["eval"]} for name, task in content["tasks"].items()}
    return content | {"tasks": tasks}


# The cache takes what training and calibration leave, whatever comes after them, and nothing from other journals.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("cached", "change"),
    [
        (True, {}),
        (True, {"alignment": float("inf"), "sparsity": 0.3}),
        (True, {"dtype": "float32", "recover": "closed-form"}),
        (True, {"dtype": "int8", "page": "auto", "recover": FINETUNE}),
        (False, {"dtype": "int8", "page": "auto", "recover": FINETUNE}),
        (False, {"recover": FINETUNE | {"private_blocks": 0.2, "private_steps": 2, "low_rank": 2}, "compare": True}),
        (False, {"recover": FINETUNE | {"start": "closed-form"}}),
    ],
)
def test_the_estimate_holds_against_what_a_compile_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool, change: dict[str, Any]
) -> None:
    monkeypatch.setattr("weightpager.compiler.resume.journal.SECONDS", 0.0)  # every step is noted
    monkeypatch.setattr("weightpager.compiler.resume.journal.SHARE", float("inf"))
    monkeypatch.setenv("WEIGHTPAGER_CACHE_LIMIT", "1GB")
    monkeypatch.setenv("WEIGHTPAGER_CACHE", str(tmp_path / "cache"))
    content, out = validated(tiny.assistant(tmp_path)) | change, tmp_path / "a.bundle"
    source = sources.load(task_file.from_dict(content))
    bundle = bundle_bytes(source)
    estimate = journal_bytes(source, bundle=bundle)
    most = 0

    def look(*_: object) -> None:
        nonlocal most
        most = max(most, size_of(journal_folder(out)))

    wp.compile(content, out=out, progress=look, cache=cached)
    assert size_of(out) <= bundle < 3 * size_of(out) + 200_000
    # While an entry is replaced there are two of it, which `look` doesn't see.
    assert most + size_of(out) <= estimate < 3 * (most + size_of(out)) + 200_000
    if cached:
        kept = sum(entry.bytes for entry in Cache.of_user().entries())
        assert kept <= cache_bytes(source) < 2 * kept + 200_000


@pytest.mark.slow
def test_a_compile_is_refused_before_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, stages = tiny.assistant(tmp_path), []
    monkeypatch.setattr(storage_estimate, "free_bytes", lambda _: 100_000)
    with pytest.raises(CompileError, match=r"out: expected about \d.* of free storage at .*, found 97.6 KiB: up to"):
        wp.compile(content, out=tmp_path / "a.bundle", progress=lambda stage, *_: stages.append(stage))
    assert stages == []
    assert not journal_folder(tmp_path / "a.bundle").exists()
    monkeypatch.setattr(storage_estimate, "free_bytes", lambda _: None)
    wp.compile(content, out=tmp_path / "a.bundle")


def test_what_an_earlier_run_has_left_counts_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = sources.load(task_file.from_dict(tiny.assistant(tmp_path)))
    journal = tmp_path / ".a.bundle.resume"
    journal.mkdir()
    needed = journal_bytes(source, bundle=bundle_bytes(source))
    monkeypatch.setattr(storage_estimate, "free_bytes", lambda _: needed - 1000)
    with pytest.raises(CompileError, match="out: expected about"):
        storage_estimate.check_storage(source, journal, Cache.none())
    (journal / "train.safetensors").write_bytes(bytes(1000))
    storage_estimate.check_storage(source, journal, Cache.none())
    with pytest.raises(CompileError, match="out: expected about"):
        storage_estimate.check_storage(source, journal, Cache.none(), scratch=1)


@pytest.mark.slow
def test_where_only_the_cache_has_no_room_it_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WEIGHTPAGER_CACHE_LIMIT", "1GB")
    monkeypatch.setenv("WEIGHTPAGER_CACHE", str(tmp_path / "cache"))
    content = tiny.assistant(tmp_path)
    source = sources.load(task_file.from_dict(content))
    needed = journal_bytes(source, bundle=bundle_bytes(source))
    monkeypatch.setattr(storage_estimate, "free_bytes", lambda _: needed + 1000)
    wp.compile(content, out=tmp_path / "a.bundle")
    assert "nothing is kept for other compiles: expected about" in caplog.text
    assert not (tmp_path / "cache").exists()
