"""Where held-out data lies: no bundle names this machine's folders, and `eval` finds the data nevertheless."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
import weightpager as wp
from command import Command
from weightpager.bundle import Bundle, EvalData, TaskEntry
from weightpager.bundle.held_out_places import held_out_file, portable


def entry(file: Path) -> TaskEntry:
    data = EvalData(file=str(file), blake3="0" * 64, text="text", label="label", items=None)
    return TaskEntry(name="a", kind="language-modeling", classes=[], max_length=8, sparsity=0.5, dense=None, eval=data)


def named(file: Path, folder: Path) -> str:
    data = portable(entry(file), folder).eval
    assert data is not None
    return data.file


def test_data_is_named_from_the_bundles_folder_or_by_name(tmp_path: Path) -> None:
    assert named(tmp_path / "data" / "a.jsonl", tmp_path) == "data/a.jsonl"
    assert named(tmp_path / "data" / ".." / "a.jsonl", tmp_path) == "a.jsonl"
    assert named(tmp_path / "data" / "a.jsonl", tmp_path / "bundles") == "a.jsonl"
    assert named(Path("data/a.jsonl"), tmp_path) == "data/a.jsonl"  # from another bundle, which named it so
    (tmp_path / "link").symlink_to(tmp_path)
    assert named(tmp_path / "link" / "data" / "a.jsonl", tmp_path) == "data/a.jsonl"


def test_data_is_found_where_it_was_beside_the_bundle_or_here(
    tmp_path: Path, assistant_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIGHTPAGER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WEIGHTPAGER_CACHE_LIMIT", "1MiB")
    (tmp_path / "bundles").mkdir(), (tmp_path / "here").mkdir(), (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    bundle = Bundle.open(shutil.copytree(assistant_bundle, tmp_path / "bundles" / "a.bundle"))
    places = [tmp_path / folder / "a.jsonl" for folder in ("here", "bundles", "data")]
    stated = portable(entry(places[2]), tmp_path / "bundles").eval
    assert stated is not None
    assert held_out_file(bundle, stated) is None
    for place in places:  # a later one goes first
        place.write_text("{}\n")
        found = held_out_file(bundle, stated)
        assert found is not None
        assert found.resolve() == place


@pytest.mark.slow
@pytest.mark.parametrize("made", [tiny.assistant, tiny.clerk, tiny.camera])
def test_no_file_of_a_bundle_names_a_folder_of_this_machine(
    tmp_path: Path, made: Callable[..., dict[str, Any]], weightpager: Command
) -> None:
    folder = tmp_path / "folder-of-somebody"
    folder.mkdir()
    content = made(folder)
    settings = Path(content["model"]) / "tokenizer_config.json"
    if settings.exists():  # as transformers writes it where a tokenizer was loaded with a cache of its own
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"cache_dir": str(folder)}))
    bundle = wp.compile(content, out=folder / "a.bundle").path
    names = [folder.name, str(Path.cwd())]
    files = {path.relative_to(bundle): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    assert [(file, name) for file, text in files.items() for name in names if name.encode() in text] == []
    assert weightpager("eval", bundle).code == 0
