"""Low-rank pages: what lies in them, what kernels make of it, and bundles that say something else of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
import weightpager as wp
from benchmarks.fuzz.sealing import rewrite_arrays, rewrite_manifest
from weightpager.backends.task_parts import StoredMatrix
from weightpager.backends.verify import verify
from weightpager.bundle import Bundle
from weightpager.bundle.format.low_rank import LEAST_BLOCK, LowRank, LowRankLayout
from weightpager.bundle.format.manifest import LOW_RANK_DTYPE, LowRankEntry
from weightpager.bundle.format.page_file import FILE as INDEX
from weightpager.bundle.garbage import collect
from weightpager.compiler.repack import repack
from weightpager.errors import BundleFormatError
from weightpager.kernels.torch import paged_linear
from weightpager.runtime.budget import smallest_budget
from weightpager.store.block_reader import read_low_rank

INPUTS = {"input_ids": torch.tensor([[2, 4, 9, 12, 7, 3]]), "attention_mask": torch.ones(1, 6, dtype=torch.int64)}
RECOVER = {"method": "finetune", "steps": 4, "batch": 8, "private_steps": 6, "low_rank": 2}


@st.composite
def layouts(draw: st.DrawFn) -> tuple[LowRankLayout, int]:
    """A layout over random weights, some of which have a part, and the bytes of a page."""
    sizes = st.tuples(st.integers(0, 5), st.integers(1, 300), st.integers(1, 300))
    weights = [
        SimpleNamespace(name=f"base_model.{at}", layer=layer, out_features=rows, in_features=cols)
        for at, (layer, rows, cols) in enumerate(draw(st.lists(sizes, min_size=1, max_size=6)))
    ]
    of = sorted(draw(st.sets(st.sampled_from(range(len(weights))), min_size=1)))
    page_bytes = draw(st.sampled_from([4096, 16384]))
    rank = draw(st.integers(1, 40))
    entry = SimpleNamespace(low_rank=LowRankEntry(rank=rank, weights=of))
    manifest: Any = SimpleNamespace(weights=weights, page_bytes=page_bytes)
    layout = LowRankLayout.of(manifest, entry)  # type: ignore[arg-type]
    assert layout is not None
    return layout, page_bytes


def drawn_parts(layout: LowRankLayout, seed: int) -> dict[str, LowRank]:
    """Random parts, of ranks up to the layout's."""
    random = np.random.default_rng(seed)
    sizes = zip(layout.names, layout.down.grids, layout.up.grids, strict=True)
    ranks = {name: int(random.integers(1, down.out_features + 1)) for name, down, _ in sizes}
    return {
        name: LowRank(
            random.standard_normal((ranks[name], down.in_features)).astype(np.float32),
            random.standard_normal((up.out_features, ranks[name])).astype(np.float32),
        )
        for name, down, up in zip(layout.names, layout.down.grids, layout.up.grids, strict=True)
    }


@given(drawn=layouts(), seed=st.integers(0, 2**32))
@settings(deadline=None)
def test_kernels_read_what_was_written(drawn: tuple[LowRankLayout, int], seed: int) -> None:
    layout, page_bytes = drawn
    parts = drawn_parts(layout, seed)
    pages = [np.frombuffer(page, np.uint8) for page in layout.content(layout.encoded(parts), page_bytes)]
    assert len(pages) == layout.pages == len(layout.page_layers())
    assert all(run.places <= page_bytes // LEAST_BLOCK for run in (layout.down, layout.up))
    assert all(len(page) == page_bytes for page in pages)
    stored = layout.stored(pages)
    assert [*layout.content(stored, page_bytes)] == [page.tobytes() for page in pages]
    read = layout.parts(stored)
    # Pages in another order, among others, as an arena has them.
    random = np.random.default_rng(seed)
    slots = random.permutation(2 * len(pages))[: len(pages)]
    arena = random.integers(0, 256, (2 * len(pages), page_bytes), np.uint8)
    arena[slots] = pages
    numbers = random.permutation(3 * len(pages))[: len(pages)]
    page_table = np.full(3 * len(pages), -1, np.int32)
    page_table[numbers] = slots
    memory = np.zeros(layout.entries, np.int32)
    layout.fill(memory, numbers)
    tables = layout.tables(memory)
    for name, down, up in zip(layout.names, layout.down.grids, layout.up.grids, strict=True):
        part, table = read[name], tables[name]
        for grid, of, values, wanted in (
            (down, table.down, part.down, parts[name].down),
            (up, table.up, part.up, parts[name].up),
        ):
            x = torch.from_numpy(random.standard_normal((3, grid.in_features)).astype(np.float32))
            found = paged_linear(x, StoredMatrix(grid, LOW_RANK_DTYPE, of).on_host(arena, page_table))
            torch.testing.assert_close(found, x @ torch.from_numpy(values).T, rtol=2e-2, atol=0.2)
            near = np.zeros_like(values)
            near[: wanted.shape[0], : wanted.shape[1]] = wanted
            assert np.abs(values - near).max() <= 0.02 * np.abs(near).max()


@given(drawn=layouts())
def test_a_layer_finds_its_blocks_in_pages_of_its_own_and_of_earlier_layers(drawn: tuple[LowRankLayout, int]) -> None:
    layout, _ = drawn
    for run in (layout.down, layout.up):
        of_pages = run.page_layers()
        assert (np.diff(of_pages) >= 0).all()
        place = 0
        for grid, layer in zip(run.grids, run.layers, strict=True):
            for block in range(place, place + grid.count):
                assert of_pages[block // run.places] <= layer
            place += grid.count


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapted")
    wp.compile(tiny.assistant(folder, recover=RECOVER), out=folder / "a.bundle")
    return folder / "a.bundle"


@pytest.fixture
def bundle(adapted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(adapted, tmp_path / "a.bundle"))


def logits(bundle: Path, task: str, **settings: Any) -> torch.Tensor:
    with wp.Engine.from_pretrained(bundle, **settings) as engine, engine.task(task) as module, torch.inference_mode():
        found: torch.Tensor = module(**INPUTS).logits
        return found


def test_they_stay_the_same_to_the_bit_wherever_they_lie(bundle: Path, tmp_path: Path) -> None:
    before = {task: logits(bundle, task) for task in Bundle.open(bundle).tasks}
    parts = read_low_rank(Bundle.open(bundle), "animal")
    for page in (4096, 32768):
        done = tmp_path / f"{page}.bundle"
        repack(bundle, done, page=page)
        assert not verify(done).problems
        assert all(torch.equal(logits(done, task), before[task]) for task in before)
        for name, part in read_low_rank(Bundle.open(done), "animal").items():
            assert np.array_equal(part.up, parts[name].up)
    gone = next(task for task in before if task != "animal")
    collect(bundle, drop=[gone])
    assert not verify(bundle).problems
    assert gone not in Bundle.open(bundle).tasks
    assert all(torch.equal(logits(bundle, task), before[task]) for task in before if task != gone)


def test_only_the_task_that_is_in_use_needs_them_in_memory(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    sizes = {task: len(opened.pages_of(task)) for task in opened.tasks}
    with wp.Engine.from_pretrained(bundle) as engine:
        for task in (*sizes, *sizes):
            engine.activate(task)
        assert engine.report().memory.private == sum(
            opened.entry(f"tasks/{task}/private.safetensors").bytes for task in sizes
        )
    first = {task: logits(bundle, task) for task in sizes}
    with wp.Engine.from_pretrained(bundle, budget=smallest_budget(opened)) as engine:
        for task in (*sizes, *reversed(sizes)):
            with engine.task(task) as module, torch.inference_mode():
                assert torch.equal(module(**INPUTS).logits, first[task])


def test_tasks_with_the_same_blocks_have_their_tables_in_common(tmp_path: Path) -> None:
    wp.compile(tiny.assistant(tmp_path, sparsity=0, recover=RECOVER), out=tmp_path / "a.bundle")
    opened = Bundle.open(tmp_path / "a.bundle")
    first = {task: logits(opened.path, task) for task in opened.tasks}
    with wp.Engine.from_pretrained(opened.path) as engine:
        tables = [task.tables for task in engine._open.tasks.values()]
        assert len({of.blocks for of in tables}) == 1
        assert len({of.low_rank for of in tables}) == len(tables) > 1
        for task in (*first, *first):
            with engine.task(task) as module, torch.inference_mode():
                assert torch.equal(module(**INPUTS).logits, first[task])
        gone, *stay = first
        collect(opened.path, drop=[gone])
        engine.reload()
        for task in stay:
            with engine.task(task) as module, torch.inference_mode():
                assert torch.equal(module(**INPUTS).logits, first[task])


def of_index(change: Callable[[dict[str, Any], np.ndarray], object]) -> Callable[[Path], None]:
    """A change of the page index, told which pages hold the first task's low-rank parts."""

    def changed(bundle: Path) -> None:
        pages = Bundle.open(bundle).low_rank_pages("animal")
        rewrite_arrays(bundle, INDEX, lambda arrays: change(arrays, pages))

    return changed


def of_entry(**changes: Any) -> Callable[[Path], None]:
    """A change of the first task's entry."""
    return lambda bundle: rewrite_manifest(bundle, lambda manifest: manifest["tasks"][0]["low_rank"].update(changes))


def without_entry(bundle: Path) -> None:
    rewrite_manifest(bundle, lambda manifest: manifest["tasks"][0].pop("low_rank"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (of_index(lambda arrays, pages: arrays["signatures"].__setitem__(pages[0], 0)), "low-rank pages of animal"),
        (of_index(lambda arrays, pages: arrays["signatures"].__setitem__(pages[0], 3)), "low-rank pages of weather"),
        (of_index(lambda arrays, pages: arrays["signatures"].__setitem__(pages[0], 2**63)), "low-rank pages of animal"),
        (of_index(lambda arrays, pages: arrays["layers"].__setitem__(pages, 1)), "low-rank parts of animal"),
        (of_entry(weights=[0]), "low-rank pages of animal"),
        (of_entry(weights=[]), "low_rank.weights"),
        (of_entry(weights=[1, 0]), "low_rank.weights of animal that ascend"),
        (of_entry(weights=[0, 0]), "low_rank.weights of animal that ascend"),
        (of_entry(weights=[0, 2**30]), "low_rank.weights of animal that ascend"),
        (of_entry(rank=0), "rank"),
        (of_entry(rank=1000), "low_rank.rank of animal of at most"),
        (of_entry(rank=2**40), "rank"),
        (of_entry(rank=64), "low-rank pages of animal"),
        (without_entry, "0 low-rank pages of animal"),
    ],
)  # fmt: skip
def test_a_bundle_that_says_something_else_of_them_is_refused(
    bundle: Path, change: Callable[[Path], None], says: str
) -> None:
    assert next(iter(Bundle.open(bundle).tasks)) == "animal"
    change(bundle)
    with pytest.raises(BundleFormatError, match=says):
        Bundle.open(bundle)
    assert any(says in problem for problem in verify(bundle).problems)
