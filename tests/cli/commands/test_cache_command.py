"""``weightpager cache``, and what a compile says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import tiny
from command import Command


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task file, where the cache is on."""
    monkeypatch.setenv("WEIGHTPAGER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WEIGHTPAGER_CACHE_LIMIT", "100MB")
    path = tmp_path / "tasks.yaml"
    path.write_text(yaml.safe_dump(tiny.assistant(tmp_path)))
    return path


@pytest.mark.slow
def test_a_compile_says_what_it_keeps_and_takes(weightpager: Command, tasks: Path, tmp_path: Path) -> None:
    first = weightpager("compile", tasks, "--out", tmp_path / "a.bundle")
    assert f"the dense model is kept in {tmp_path / 'cache' / 'compile'}: another sparsity or dtype" in first.err
    tasks.write_text(tasks.read_text().replace("sparsity: 0.6", "sparsity: 0.5"))
    second = weightpager("compile", tasks, "--out", tmp_path / "b.bundle")
    assert "the dense model: taken from the cache, less than a minute saved" in second.err
    third = weightpager("compile", tasks, "--out", tmp_path / "c.bundle", "--no-cache")
    assert "cache" not in third.err
    fourth = weightpager("compile", tasks, "--out", tmp_path / "d.bundle", "--quiet")
    assert (fourth.code, fourth.err) == (0, "")


def test_the_cache_is_listed_and_cleared(
    weightpager: Command, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache" / "compile"
    assert weightpager("cache").out == f"{folder}: 0 B of 95.4 MiB\n"
    weightpager("compile", tasks, "--out", tmp_path / "a.bundle")
    (tmp_path / "cache" / "archives").mkdir()
    shown = weightpager("cache")
    assert "train-" in shown.out
    assert "less than a minute ago" in shown.out
    entries = json.loads(weightpager("cache", "--json").out)["entries"]
    assert sorted(entry["path"].rpartition("/")[2].partition("-")[0] for entry in entries) == [
        *["scores"] * 4, *["sums"] * 4, "train"
    ]  # fmt: skip
    cleared = weightpager("cache", "--clear", "--json")
    assert json.loads(cleared.out)["freed_bytes"] == sum(entry["bytes"] for entry in entries)
    assert list(folder.iterdir()) == []
    assert (tmp_path / "cache" / "archives").is_dir()
    monkeypatch.setenv("WEIGHTPAGER_CACHE_LIMIT", "0")
    assert "compiles keep nothing" in weightpager("cache").out
