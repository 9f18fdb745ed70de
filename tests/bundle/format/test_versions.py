"""Bundles of earlier versions still open, with the answers that they had; what rewrites one writes today's version."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import weightpager as wp
from benchmarks.fuzz.sealing import Arrays, rewrite_arrays, rewrite_file, rewrite_manifest
from weightpager.backends.verify import verify
from weightpager.bundle import Bundle
from weightpager.bundle.format.manifest import VERSION
from weightpager.bundle.format.version_1 import tables_file
from weightpager.bundle.garbage import collect
from weightpager.compiler.repack import repack, upgrade
from weightpager.errors import BundleFormatError

STORED = Path(__file__).parent / "version-1.tar.xz"
"""Two tasks of a tiny encoder in int8, with private blocks, as the last release before version 2 wrote them."""

WORDS = torch.tensor([[2, 5, 9, 11, 3]])
ANSWERS = {
    "animal": [[-0.12819340825080872, -0.5680347681045532]],
    "colour": [[[-0.6598373651504517, 0.7293720245361328], [-0.7629942893981934, 1.4233022928237915],
                [-1.53019380569458, 0.8138232231140137], [-0.4680941104888916, 0.8391464948654175],
                [-0.3098776340484619, -0.14249363541603088]]],
}  # fmt: skip
"""What they answered then."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with tarfile.open(STORED) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "small.bundle"


def answers_as_then(path: Path, tasks: set[str]) -> None:
    with wp.Engine.from_pretrained(path) as engine, torch.inference_mode():
        assert set(engine.bundle.tasks) == tasks
        for task in tasks:
            logits = engine.activate(task)(input_ids=WORDS, attention_mask=torch.ones_like(WORDS)).logits
            torch.testing.assert_close(logits, torch.tensor(ANSWERS[task]), rtol=1e-3, atol=1e-3)


def test_a_bundle_of_version_1_opens_and_answers_as_it_did(old: Path) -> None:
    assert Bundle.open(old).manifest.version == 1
    assert verify(old).problems == ()
    answers_as_then(old, {"animal", "colour"})


def test_collecting_garbage_brings_it_to_todays_version(old: Path) -> None:
    collect(old, drop=["colour"])
    assert Bundle.open(old).manifest.version == VERSION
    assert verify(old).problems == ()
    answers_as_then(old, {"animal"})


def test_packing_it_anew_brings_it_to_todays_version(old: Path, tmp_path: Path) -> None:
    repack(old, tmp_path / "new.bundle")
    assert Bundle.open(tmp_path / "new.bundle").manifest.version == VERSION
    assert verify(tmp_path / "new.bundle").problems == ()
    answers_as_then(tmp_path / "new.bundle", {"animal", "colour"})


@pytest.mark.parametrize("version", [0, 3, "2", 2.0, True, None])
def test_other_versions_are_refused(old: Path, version: object) -> None:
    rewrite_manifest(old, lambda manifest: manifest.update(version=version))
    with pytest.raises(BundleFormatError, match="version: expected"):
        Bundle.open(old)


def _first(arrays: Arrays, field: str) -> np.ndarray:
    return next(array for name, array in arrays.items() if name.endswith(field) and array.size)


def _twice(arrays: Arrays) -> None:
    """Two blocks of a weight in one place."""
    where = next(array for name, array in arrays.items() if name.endswith("locations") and len(array) > 1)
    where[1] = where[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: _first(arrays, "locations").fill(2**31 - 1),
        lambda arrays: _first(arrays, "locations").fill(-1),
        lambda arrays: _first(arrays, "col_indices").fill(2**30),
        lambda arrays: _first(arrays, "crow_indices").fill(7),
        lambda arrays: arrays.popitem(),
        lambda arrays: arrays.update(surprise=np.zeros(3, np.int32)),
        lambda arrays: arrays.update({name: array.astype(np.int64) for name, array in arrays.items()}),
        _twice,
    ],
)
def test_wild_tables_of_version_1_are_refused(old: Path, change: Callable[[Arrays], object]) -> None:
    rewrite_arrays(old, tables_file("colour"), change)
    with pytest.raises(BundleFormatError, match=r"tasks/colour/tables.safetensors: .*: expected"):
        Bundle.open(old)


def test_a_block_in_a_page_of_another_layer_is_refused(old: Path) -> None:
    def swap(arrays: Arrays) -> None:
        first, last = (
            next(a for name, a in arrays.items() if f".layer.{layer}." in name and "locations" in name and len(a))
            for layer in (0, 1)
        )
        first[0] = last[0]

    rewrite_arrays(old, tables_file("colour"), swap)
    with pytest.raises(BundleFormatError, match="another layer"):
        Bundle.open(old)


def test_a_table_of_version_1_that_promises_the_moon_is_refused(old: Path) -> None:
    header = json.dumps({"x": {"dtype": "I32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    rewrite_file(old, tables_file("animal"), len(header).to_bytes(8, "little") + header)
    with pytest.raises(BundleFormatError, match="safetensors"):
        Bundle.open(old)


@pytest.mark.slow
def test_a_bundle_of_version_1_is_upgraded(old: Path, tmp_path: Path) -> None:
    done = upgrade(old, tmp_path / "new.bundle")
    new = Bundle.open(tmp_path / "new.bundle")
    assert new.manifest.version == 2
    assert new.graph_kinds == done.graphs
    assert verify(new.path).problems == ()
    answers_as_then(new.path, {"animal", "colour"})
