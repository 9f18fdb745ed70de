"""The published lists: what they promise by counting, and that switches and the reads beside them bring just that."""

from __future__ import annotations

import shutil
import statistics
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

from benchmarks import published, row_file
from benchmarks.published import DRIVE, KEPT, Row, Shape, counted, extents, kept_by, measured, page, walk
from weightpager.bundle import Bundle
from weightpager.errors import WeightpagerError
from weightpager.kernels.choice import NATIVE
from weightpager_lab.direct_reads import DirectReader, new_buffer

SHAPE = Shape("tiny", 64, 96, 4, 100, 4096, 2**14)
PAIRS = list(dict.fromkeys(pairwise(DRIVE)))
ALL = [(a, b) for a in KEPT for b in KEPT if a != b]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("published") / "tiny.bundle"
    published.write(SHAPE, "bfloat16", path)
    return Bundle.open(path)


def ratios(method: str, pairs: list[tuple[str, str]]) -> list[float]:
    return [counted(kept_by(method), *pair) for pair in pairs]


def test_what_the_lists_promise() -> None:
    assert len(PAIRS) == 6
    assert [round(each, 2) for each in ratios("published", PAIRS)] == [8.5, 8.5, 5.33, 3.2, 3.2, 4.25]
    assert round(statistics.fmean(ratios("published", PAIRS)), 1) == 5.5
    assert round(statistics.fmean(ratios("published", ALL)), 1) == 4.7
    assert round(statistics.fmean(ratios("SLEB", PAIRS)), 1) == 3.1
    assert max(ratios("SLEB", PAIRS)) == 4.5
    assert {len(kept) for kept in KEPT.values()} == {16, 17}


@pytest.mark.parametrize("repeats", [1, 2, 3])
def test_a_walk_has_every_pair_once_and_the_published_ones_again(repeats: int) -> None:
    steps = walk(repeats)
    assert all(before[1] == after[0] for before, after in pairwise(steps))
    assert sorted(steps) == sorted(
        (*pair, repeat) for pair in ALL for repeat in range(repeats if pair in PAIRS else 1)
    )  # fmt: skip


@pytest.mark.parametrize("rate", [0, pytest.param(300, marks=pytest.mark.skipif(not NATIVE, reason="not built"))])
def test_a_switch_reads_the_layers_that_it_lacks(bundle: Bundle, rate: int) -> None:
    blocks = 4 * (64 // 16) * (64 // 32) + 2 * (96 // 16) * (64 // 32) + (64 // 16) * (96 // 32)
    layer = -(-blocks // (4096 // (16 * 32 * 2))) * 4096
    rows = list(measured(SHAPE, bundle, rate, walk(1)[3:], None))  # begins at another task
    assert len(rows) == 9
    for row in rows:
        assert row.bytes == layer * len(KEPT[row.to_task] - KEPT[row.from_task])
        assert row.whole_bytes == layer * len(KEPT[row.to_task])
        assert row.whole_bytes / row.bytes == pytest.approx(row.counted, abs=1e-4)
        assert min(row.seconds, row.raw_seconds, row.whole_seconds) > 0


def test_the_reads_beside_a_switch_bring_these_layers_pages(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "EXTENT", 3 * bundle.page_bytes)  # no layer is read in one
    layers = KEPT["person"] - KEPT["car"]
    memory, ids = memoryview(new_buffer(published.EXTENT)), []
    with closing(DirectReader(2)) as reader:
        for part in extents(bundle, layers):
            count = published.read(reader, [part], memory)
            ids += [blake3(memory[at : at + 4096]).digest() for at in range(0, count, 4096)]
    wanted = bundle.pages.ids[np.isin(bundle.pages.layers, list(layers))]
    assert ids == [each.tobytes() for each in wanted]


def test_measured_rows_are_not_measured_again(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    json, written = tmp_path / "rows.json", []

    def write(_shape: Shape, _dtype: str, path: Path) -> None:
        written.append(path)
        shutil.copytree(bundle.path, path)

    def run() -> list[Row]:
        published.main(json, tmp_path, quick=True, dtype=["bfloat16"], rate=[0], repeats=1)
        return row_file.read(json, Row)

    monkeypatch.setattr(published, "QUICK", SHAPE)
    monkeypatch.setattr(published, "write", write)
    rows = run()
    assert {(row.from_task, row.to_task) for row in rows} == set(ALL)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]
    assert run() == rows
    assert len(written) == 1
    row_file.write(json, rows[:5])
    again = run()
    assert again[:5] == rows[:5]
    assert [row.key for row in again] == [row.key for row in rows]
    assert "| bfloat16, disk as it is |" in page(rows)


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(published, "free_bytes", lambda _: 1 << 20)
    with pytest.raises(WeightpagerError, match=r"expected 1.\.. GiB of free disk, found 1.0 MiB"):
        published.write(published.VICUNA, "bfloat16", tmp_path / "bundle")
