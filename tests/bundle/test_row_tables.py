"""Bundles with tables of rows: wild ones are refused, damage is found and mended, and tidying keeps every row."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from benchmarks.fuzz.sealing import remove_file, rewrite_arrays, rewrite_manifest
from weightpager.backends.torch.export import export_task
from weightpager.backends.torch.parameters import read_rows
from weightpager.backends.verify import verify
from weightpager.bundle import Bundle
from weightpager.bundle.format import row_table
from weightpager.bundle.garbage import collect
from weightpager.bundle.repair import repair
from weightpager.compiler.repack import repack
from weightpager.engine import Engine
from weightpager.errors import BundleError, PageCorruptError

WORDS = "base_model.embeddings.word_embeddings.weight"
ROWS = "rows-0000.safetensors"
INPUTS = {"input_ids": torch.tensor([[2, 5, 380, 11, 3]]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}


@pytest.fixture
def copied(wordy_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(wordy_bundle, tmp_path / "copied.bundle"))


def refused(bundle: Path) -> str:
    with pytest.raises(BundleError) as found:
        Bundle.open(bundle)
    assert verify(bundle).problems
    return str(found.value)


def answers(bundle: Path) -> dict[str, torch.Tensor]:
    found = {}
    with Engine.from_pretrained(bundle) as engine, torch.inference_mode():
        for task in engine.bundle.tasks:
            found[task] = engine.activate(task)(**INPUTS).logits
    return found


def test_a_rows_place_is_where_its_bytes_lie(wordy_bundle: Path) -> None:
    bundle = Bundle.open(wordy_bundle)
    table = bundle.row_tables[WORDS]
    start = table.first * bundle.page_bytes
    stream = b"".join((wordy_bundle / name).read_bytes()[4096:] for name in bundle.manifest.row_file_names())[start:]
    values = read_rows(bundle)[WORDS]
    for row in (0, 5, 399):
        at = int(table.places[row]) * 66
        stored = np.frombuffer(stream[at : at + 66], np.uint8)[None]
        assert (row_table.decode_rows(stored) == values[row].numpy()).all()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda m: m.update(version=1), "version: expected 3; compile the bundle again"),
        (lambda m: m.update(row_files=[]), "row_files"),
        (lambda m: m["row_files"].append(1), "row_files"),
        (lambda m: m.update(row_files=[-1, 10]), "row_files"),
        (lambda m: m.update(row_tables=[], row_files=[]), "page-index"),
        (lambda m: m["row_tables"][0].update(rows=1 << 40), "row_tables"),
        (lambda m: m["row_tables"][0].update(rows=2**31 - 1, columns=2**24), "row_files"),
        (lambda m: m["row_tables"][0].update(columns=0), "columns"),
        (lambda m: m["row_tables"][0].update(name=m["row_tables"][1]["name"]), "row table names"),
        (lambda m: m["row_tables"][0].update(name=m["weights"][0]["name"] + ".weight"), "row-places"),
        (lambda m: m["row_tables"][0].update(lookups=float("nan")), "lookups"),
        (lambda m: m["row_tables"][0].update(lookups=-1.0), "lookups"),
        (lambda m: m["row_tables"][0]["uses"].update(animal=[0.0]), "uses"),
        (lambda m: m["row_tables"][0]["uses"].update(animal=[1.0] * 64 + [0.5]), "uses that rise"),
        (lambda m: m["row_tables"][0]["uses"].update(animal=[float("nan")] * 65), "uses"),
        (lambda m: m["row_tables"][0]["uses"].update(animal=[2.0] * 65), "uses"),
        (lambda m: m["row_tables"][0].update(surprise=1), "surprise"),
    ],
)
def test_wild_tables_are_refused_by_name(copied: Path, change: Callable[[Any], object], field: str) -> None:
    rewrite_manifest(copied, change)
    assert field in refused(copied)


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays[WORDS].fill(0),
        lambda arrays: arrays[WORDS].fill(65535),
        lambda arrays: arrays.pop(WORDS),
        lambda arrays: arrays.update(surprise=np.zeros(3, np.uint16)),
        lambda arrays: arrays.update({WORDS: arrays[WORDS].astype(np.uint32)}),
        lambda arrays: arrays.update({WORDS: arrays[WORDS][:-1]}),
    ],
)
def test_wild_places_are_refused(copied: Path, change: Callable[[Any], object]) -> None:
    rewrite_arrays(copied, row_table.FILE, change)
    assert row_table.FILE in refused(copied)


def test_missing_places_are_refused(copied: Path) -> None:
    remove_file(copied, row_table.FILE)
    assert row_table.FILE in refused(copied)


@pytest.mark.parametrize("field", ["signatures", "layers"])
def test_pages_of_rows_are_no_tasks_and_of_no_layer(copied: Path, field: str) -> None:
    rewrite_arrays(copied, "page-index.safetensors", lambda arrays: arrays[field][-1:].fill(1))
    assert field in refused(copied)


def test_a_table_that_the_architecture_doesnt_have_is_refused(copied: Path) -> None:
    other = WORDS.replace("word", "wood")
    rewrite_manifest(copied, lambda m: [t.update(name=other) for t in m["row_tables"] if t["name"] == WORDS])
    rewrite_arrays(copied, row_table.FILE, lambda arrays: arrays.update({other: arrays.pop(WORDS)}))
    with pytest.raises(BundleError, match=r"row_tables\.bert\.embeddings\.wood_embeddings"):
        answers(copied)


def test_a_table_of_another_width_is_refused(copied: Path) -> None:
    rewrite_manifest(copied, lambda m: m["row_tables"][1].update(columns=63))  # in as many pages
    with pytest.raises(BundleError, match="an embedding of 400x63"):
        answers(copied)


def flip(bundle: Path, at: int) -> None:
    with (bundle / ROWS).open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 16]))


def test_a_flipped_bit_is_found_and_mended(copied: Path, wordy_bundle: Path) -> None:
    pages = Bundle.open(copied).manifest.pages
    flip(copied, 4096 + 2 * 4096 + 17)
    found = verify(copied)
    assert [f"{ROWS}: page {pages + 2} (place 2)" in problem for problem in found.problems] == [True]
    assert any("--repair" in line for line in found.advice)
    with pytest.raises(PageCorruptError, match="weightpager verify"):
        answers(copied)
    assert repair(copied, wordy_bundle).mended_pages == (pages + 2,)
    assert verify(copied).problems == ()
    (copied / ROWS).unlink()
    assert ROWS in refused(copied)
    done = repair(copied, wordy_bundle)
    assert done.mended_frames == (ROWS,)
    assert done.problems == verify(copied).problems == ()


def test_a_page_file_of_rows_that_ends_too_early_is_refused(copied: Path) -> None:
    with (copied / ROWS).open("r+b") as file:
        file.truncate(4096 * 3 + 5)
    assert ROWS in refused(copied)


def test_collecting_garbage_keeps_rows(copied: Path) -> None:
    before = answers(copied)
    collect(copied, drop=["animal"])
    bundle = Bundle.open(copied)
    assert verify(copied).problems == ()
    assert all(set(entry.uses) == {"weather", "number", "colour"} for entry in bundle.manifest.row_tables)
    after = answers(copied)
    assert all(torch.equal(after[task], before[task]) for task in bundle.tasks)


@pytest.mark.parametrize("page", [None, 16384])
def test_repacking_keeps_rows(copied: Path, tmp_path: Path, page: int | None) -> None:
    before = answers(copied)
    repack(copied, tmp_path / "repacked.bundle", page=page)
    assert verify(tmp_path / "repacked.bundle").problems == ()
    after = answers(tmp_path / "repacked.bundle")
    assert all(torch.equal(after[task], before[task]) for task in before)


def test_an_exported_task_has_whole_tables(wordy_bundle: Path, tmp_path: Path) -> None:
    out = export_task(Bundle.open(wordy_bundle), "animal", tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(out).eval()
    with torch.inference_mode():
        torch.testing.assert_close(answers(wordy_bundle)["animal"], model(**INPUTS).logits, rtol=1e-4, atol=1e-4)
