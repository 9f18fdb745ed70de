import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from weightpager.compiler.pack import (
    OVER_READ_LIMIT,
    KeptBlocks,
    differential,
    expected_seconds,
    mean_over_read,
    over_read,
    pack,
    pack_best,
)
from weightpager.store import StorageModel

TASKS = 3
UNIFORM = (np.ones((TASKS, TASKS)) - np.eye(TASKS)) / (TASKS * (TASKS - 1))


@st.composite
def kept_blocks(draw: st.DrawFn) -> list[KeptBlocks]:
    sizes = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 60)), min_size=1, max_size=6))
    seed = draw(st.integers(0, 1000))
    random = np.random.default_rng(seed)
    return [KeptBlocks.of(layer, random.random((blocks, TASKS)) < 0.6) for layer, blocks in sorted(sizes)]


@given(kept_blocks(), st.sampled_from([4, 8, 16]))
def test_every_kept_block_lies_in_one_place_of_a_page_of_its_layer(kept: list[KeptBlocks], places: int) -> None:
    packing = pack(kept, places * 128, 128)
    assert packing.blocks_per_page == places
    seen = []
    for number, weight in enumerate(kept):
        locations = packing.locations(number, len(weight.signatures))
        assert ((locations >= 0) == (weight.signatures > 0)).all()
        stored = locations[locations >= 0]
        assert (packing.layers[stored // places] == weight.layer).all()
        page_signatures = packing.signatures[stored // places]
        assert ((page_signatures & weight.signatures[locations >= 0]) == weight.signatures[locations >= 0]).all()
        seen.extend(stored.tolist())
    assert len(seen) == len(set(seen)) == int((packing.weights >= 0).sum())
    assert (np.diff(packing.layers) >= 0).all()


@given(kept_blocks())
def test_page_signatures_are_the_union_of_their_blocks(kept: list[KeptBlocks]) -> None:
    packing = pack(kept, 8 * 128, 128)
    union = np.zeros(len(packing.layers), np.uint64)
    for place, (weight, block) in enumerate(zip(packing.weights, packing.blocks, strict=True)):
        if weight >= 0:
            union[place // 8] |= kept[weight].signatures[block]
    assert np.array_equal(union, packing.signatures)


def test_blocks_of_one_signature_lie_together() -> None:
    random = np.random.default_rng(0)
    kept = [KeptBlocks(0, random.choice(np.array([1, 2, 3], np.uint64), 300))]
    packing = pack(kept, 10 * 128, 128)
    in_order = kept[0].signatures[packing.blocks[packing.weights >= 0]]
    assert int((np.diff(in_order.astype(int)) != 0).sum()) == 2


def test_the_best_page_is_the_fastest_of_those_that_waste_little() -> None:
    random = np.random.default_rng(0)
    kept = [KeptBlocks.of(layer, random.random((3000, TASKS)) < 0.6) for layer in range(3)]
    storage = StorageModel(1e9, 1e-4)
    best = pack_best(kept, 1024, UNIFORM, storage)
    assert mean_over_read(best, kept, TASKS) <= OVER_READ_LIMIT
    for size in (1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20):
        other = pack(kept, size, 1024)
        slower = expected_seconds(best, UNIFORM, storage) <= expected_seconds(other, UNIFORM, storage)
        assert slower or mean_over_read(other, kept, TASKS) > OVER_READ_LIMIT


def test_over_read_and_differential_by_hand() -> None:
    kept = [KeptBlocks(0, np.array([3, 3, 1, 2, 0], np.uint64))]
    packing = pack(kept, 2 * 128, 128)  # pages: [both, both], [a, b]
    assert packing.signatures.tolist() == [3, 3]
    assert over_read(packing, kept, 2).tolist() == [0.25, 0.25]
    assert differential(np.array([1, 2, 3, 0], np.uint64), 0, 1).tolist() == [1]
