"""Native attention and rotary embeddings, compared with the reference."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from single_node import single_node
from weightpager.answers.model import CacheSize
from weightpager.graph import Graph, GraphInput, GraphOutput, Node, Operand
from weightpager.graph.reference import KeyValues, run

native = pytest.importorskip("weightpager.kernels._native")

from weightpager.backends.native.program import GraphProgram, KVCache  # noqa: E402 - without the native module there is none

SEEDS = st.integers(0, 2**32 - 1)
ISAS = st.integers(0, len(native.isas()) - 1)


def _values(rng: np.random.Generator, *shape: int) -> Any:
    return rng.normal(0, 1, shape).astype(np.float32)


def _attributes(**changes: Any) -> dict[str, Any]:
    return {"scale": 0.3, "causal": False, "window": 0, "softcap": 0.0, "index": 0, "layout": "bhtd", **changes}


@pytest.mark.slow
@given(
    st.integers(1, 3),
    st.sampled_from([(1, 1), (4, 4), (6, 2), (3, 1)]),
    st.sampled_from([1, 2, 5, 47, 49, 64, 65, 130]),
    st.sampled_from([1, 3, 16, 20, 32, 64, 80]),
    st.sampled_from([1, 7, 16, 32, 48, 64, 70]),
    SEEDS,
    ISAS,
    st.data(),
)
def test_attention(
    batch: int,
    heads: tuple[int, int],
    tokens: int,
    depth: int,
    value_depth: int,
    seed: int,
    isa: int,
    data: st.DataObject,
) -> None:
    rng = np.random.default_rng(seed)
    causal = data.draw(st.booleans())
    keys = tokens if causal else data.draw(st.sampled_from([1, 63, 64, tokens, 100]))
    attributes = _attributes(
        causal=causal,
        window=data.draw(st.sampled_from([0, 0, 1, 5, 64, 100])) if keys == tokens else 0,
        softcap=data.draw(st.sampled_from([0.0, 0.0, 2.0])),
        layout=data.draw(st.sampled_from(["bhtd", "bthd"])),
    )
    query = _values(rng, batch, heads[0], tokens, depth)
    key, value = _values(rng, batch, heads[1], keys, depth), _values(rng, batch, heads[1], keys, value_depth)
    mask = data.draw(st.sampled_from([None, "int64", "bool"]))
    seen = None if mask is None else (rng.integers(0, 3, (batch, keys)) > 0).astype(mask)
    if attributes["layout"] == "bthd":
        query, key, value = (each.swapaxes(1, 2) for each in (query, key, value))
    orders = [rng.permutation(4) for _ in range(3)] + [rng.permutation(2)]
    graph, inputs, _ = single_node("attention", [query, key, value, seen], attributes, orders=orders)
    wanted = run(graph, {}, inputs)["y0"]
    program = GraphProgram(graph, {}, isa)
    found = [program.run(inputs, threads=threads)["y0"] for threads in (1, 2, 3, 4)]
    np.testing.assert_allclose(found[0], wanted, rtol=1e-5, atol=1e-5)
    for other in found[1:]:
        assert np.array_equal(other, found[0])


@pytest.mark.parametrize("layout", ["bhtd", "bthd"])
@pytest.mark.parametrize("isa", range(len(native.isas())))
def test_segment_attention(layout: str, isa: int) -> None:
    """Segments that end inside of blocks of keys and of queries, and at their borders."""
    for seed, lengths in enumerate(([1], [64, 64], [3, 61, 1, 70, 5], [130, 7], [1] * 20 + [200])):
        rng, tokens = np.random.default_rng(seed), sum(lengths)
        query, key, value = (
            _values(rng, 2, 4, tokens, 20),
            _values(rng, 2, 2, tokens, 20),
            _values(rng, 2, 2, tokens, 7),
        )
        segments = np.stack([np.repeat(rng.permutation(len(lengths)), lengths), np.zeros(tokens, np.int64)])
        if layout == "bthd":
            query, key, value = (each.swapaxes(1, 2) for each in (query, key, value))
        attributes = {"scale": 0.3, "layout": layout}
        graph, inputs, _ = single_node("segment_attention", [query, key, value, segments], attributes)
        program, wanted = GraphProgram(graph, {}, isa), run(graph, {}, inputs)["y0"]
        found = [program.run(inputs, threads=threads)["y0"] for threads in (1, 3)]
        np.testing.assert_allclose(found[0], wanted, rtol=1e-5, atol=1e-5)
        assert np.array_equal(*found)


def test_a_query_that_sees_nothing_gives_zeros() -> None:
    rng = np.random.default_rng(0)
    operands = [*(_values(rng, 2, 2, 70, 8) for _ in range(3)), np.zeros((2, 70), np.int64)]
    operands[3][1, 69] = 1
    graph, inputs, _ = single_node("attention", operands, _attributes(causal=True))
    found = GraphProgram(graph, {}).run(inputs)["y0"]
    assert not found[0].any()
    assert not found[1, :, :69].any()
    np.testing.assert_allclose(found[1, :, 69], operands[2][1, :, 69], rtol=1e-6)


@pytest.mark.parametrize("layout", ["bhtd", "bthd"])
@pytest.mark.parametrize("causal", [True, False])
def test_no_heads_give_nothing(layout: str, causal: bool) -> None:
    """As a slice of the heads from 0 to 0 has it."""
    whole = np.ones((2, 3, 3, 4), np.float32)
    query = whole[:, :0] if layout == "bhtd" else whole[:, :, :0]
    graph, inputs, _ = single_node("attention", [query, whole, whole, None], _attributes(layout=layout, causal=causal))
    cache, wanted = KVCache(2**20), run(graph, {}, inputs)["y0"]
    assert wanted.size == 0
    assert GraphProgram(graph, {}).run(inputs)["y0"].shape == wanted.shape
    assert GraphProgram(graph, {}).run(inputs, cache)["y0"].shape == wanted.shape


def test_scores_that_are_no_numbers_stay_so() -> None:
    operands = [np.full((1, 1, 3, 4), np.nan, np.float32)] * 3
    graph, inputs, _ = single_node("attention", [*operands, None], _attributes())
    assert np.isnan(GraphProgram(graph, {}).run(inputs)["y0"]).all()


def _texts(heads: int, groups: int, depth: int, window: int, masked: bool) -> Graph:
    """Two attentions over what a call brings."""
    shapes = {"query": heads, "key": groups, "value": groups}
    inputs = [GraphInput(name, "float32", ("batch", "length", count, depth)) for name, count in shapes.items()]
    mask = [GraphInput("attention_mask", "int64", ("batch", "length"))] if masked else []
    operands = tuple(Operand.input(each.name) for each in [*inputs, *mask]) + (() if masked else (None,))
    nodes = tuple(
        Node("attention", operands, _attributes(causal=True, index=at, layout="bthd", window=window * at), (f"v{at}",))
        for at in range(2)
    )
    outputs = (GraphOutput("first", "v0"), GraphOutput("second", "v1"))
    return Graph("test", ("batch", "length"), (*inputs, *mask), nodes, outputs)


@given(
    st.sampled_from([(1, 1), (4, 2)]),
    st.integers(1, 3),
    st.lists(st.sampled_from([1, 1, 2, 30, 64, 70]), min_size=1, max_size=5),
    SEEDS,
    st.booleans(),
    st.booleans(),
    ISAS,
)
def test_the_cache_of_earlier_tokens(
    heads: tuple[int, int], batch: int, pieces: list[int], seed: int, masked: bool, narrow: bool, isa: int
) -> None:
    """As the reference has it, of rounded keys and values too; rows may be chosen, and tokens forgotten, in between."""
    rng = np.random.default_rng(seed)
    graph = _texts(*heads, 8, 20, masked)
    program, cache, remembered = GraphProgram(graph, {}, isa), KVCache(2**24, float16=narrow), KeyValues()
    mask = np.zeros((batch, 0), np.int64)
    for piece in pieces:
        inputs = {each.name: _values(rng, batch, piece, int(each.shape[2]), 8) for each in graph.inputs[:3]}
        mask = np.concatenate([mask, rng.integers(0, 4, (batch, piece)).clip(0, 1)], 1)
        if masked:
            inputs["attention_mask"] = mask
        kept = {
            name: inputs[name].astype(np.float16).astype(np.float32) if narrow else inputs[name]
            for name in ("key", "value")
        }
        found, wanted = program.run(inputs, cache), run(graph, {}, {**inputs, **kept}, remembered)
        assert cache.tokens == mask.shape[1]
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5)
        rows = rng.integers(0, batch, int(rng.integers(1, 4))).tolist()
        cache.select(rows)
        mask, batch = mask[rows], len(rows)
        remembered.of = {at: (key[rows], value[rows]) for at, (key, value) in remembered.of.items()}
        stay = int(rng.integers(mask.shape[1] + 1))
        cache.shorten(stay)
        mask = mask[:, :stay]
        remembered.of = {at: (key[:, :, :stay], value[:, :, :stay]) for at, (key, value) in remembered.of.items()}
        assert cache.batch == (batch if stay else 0)


@given(st.lists(st.floats(width=32, allow_infinity=True, allow_nan=True), min_size=8, max_size=8), ISAS)
def test_values_are_kept_as_float16(values: list[float], isa: int) -> None:
    """To nearest, what is too large as the largest number: with one key, what comes out is its value."""
    program, cache = GraphProgram(_texts(1, 1, 8, 0, False), {}, isa), KVCache(2**20, float16=True)
    value = np.array(values, np.float32).reshape(1, 1, 1, 8)
    inputs = {"query": np.ones((1, 1, 1, 8), np.float32), "key": np.ones((1, 1, 1, 8), np.float32), "value": value}
    found = program.run(inputs, cache)["first"]
    wanted = np.clip(value, -65504, 65504).astype(np.float16).astype(np.float32)
    np.testing.assert_allclose(found.reshape(-1), wanted.reshape(-1), rtol=0, atol=6e-8)


def test_one_plan_serves_all_lengths_of_a_cache() -> None:
    graph = _texts(2, 1, 8, 0, True)
    program, cache = GraphProgram(graph, {}), KVCache(2**24)
    for length in range(1, 80):
        inputs = {each.name: np.ones((1, 1, int(each.shape[2]), 8), np.float32) for each in graph.inputs[:3]}
        program.run({**inputs, "attention_mask": np.ones((1, length), np.int64)}, cache)
    assert program._native.plans_made == 1


@pytest.mark.parametrize("narrow", [False, True])
def test_a_cache_has_a_bound_and_stays_as_it_was(narrow: bool) -> None:
    graph = _texts(2, 1, 8, 0, False)
    block = 64 * (8 + 8) * (2 if narrow else 4)
    program, cache = GraphProgram(graph, {}), KVCache(2 * block, float16=narrow)
    inputs = {each.name: np.ones((1, 64, int(each.shape[2]), 8), np.float32) for each in graph.inputs}
    program.run(inputs, cache)
    assert (cache.tokens, cache.bytes) == (64, 2 * block)
    with pytest.raises(MemoryError, match=f"at most {2 * block} bytes"):
        program.run({name: each[:, :1] for name, each in inputs.items()}, cache)
    assert (cache.tokens, cache.bytes) == (64, 2 * block)
    with pytest.raises(ValueError, match="batch of 1"):
        program.run({name: np.repeat(each, 2, 0) for name, each in inputs.items()}, cache)


@given(st.lists(st.sampled_from([64, 128]), min_size=1, max_size=4), st.integers(1, 100), SEEDS, st.booleans())
def test_a_cache_goes_on_from_copies_of_anothers_pieces(sizes: list[int], last: int, seed: int, narrow: bool) -> None:
    rng = np.random.default_rng(seed)
    graph = _texts(4, 2, 8, 20, False)
    program, cache, other = GraphProgram(graph, {}), *(KVCache(2**24, float16=narrow) for _ in range(2))

    def values(count: int) -> dict[str, Any]:
        return {each.name: _values(rng, 1, count, int(each.shape[2]), 8) for each in graph.inputs}

    pieces = []
    for size in sizes:
        start = cache.tokens
        program.run(values(size), cache)
        pieces.append(cache.piece(start, start + size))
    for piece in pieces:
        other.append(piece, piece.tokens)
    assert sum(piece.bytes for piece in pieces) == cache.bytes == other.bytes
    assert [piece.tokens for piece in pieces] == sizes
    start, more = cache.tokens, values(last + 7)  # of a piece that ends anywhere, the first tokens
    program.run(more, cache)
    other.append(cache.piece(start, start + last + 7), last)
    cache.shorten(start + last)
    for count in (3, 64):
        more = values(count)
        ours, theirs = program.run(more, cache), program.run(more, other)
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert cache.tokens == other.tokens


def test_pieces_are_whole_blocks_of_one_text_and_fit_their_cache() -> None:
    graph = _texts(2, 1, 8, 0, False)
    program, cache, small = GraphProgram(graph, {}), KVCache(2**20), KVCache(4 * 64 * 8 * 4)
    inputs = {each.name: np.ones((1, 128, int(each.shape[2]), 8), np.float32) for each in graph.inputs}
    with pytest.raises(ValueError, match="one text"):
        cache.piece(0, 1)
    program.run(inputs, cache)
    for start, stop in ((-64, 64), (1, 64), (128, 128), (192, 256), (64, 0), (64, 129)):
        with pytest.raises(ValueError, match="from a block of 64 on"):
            cache.piece(start, stop)
    whole = cache.piece(0, 128)
    for tokens in (-1, 0, 129):
        with pytest.raises(ValueError, match="1 to 128 tokens of a piece"):
            KVCache(2**20).append(whole, tokens)
    with pytest.raises(ValueError, match=f"at most {4 * 64 * 8 * 4} bytes"):
        small.append(whole, 65)
    assert (small.tokens, small.bytes, small.batch) == (0, 0, 0)
    small.append(cache.piece(64, 128), 64)
    assert (small.tokens, small.batch) == (64, 1)
    with pytest.raises(ValueError, match="a piece of this cache's program"):
        KVCache(2**20, float16=True).append(whole, 128)
    one = Graph("test", graph.dims, graph.inputs, graph.nodes[:1], graph.outputs[:1])
    alone = KVCache(2**20)
    GraphProgram(one, {}).run({name: each[:, :64] for name, each in inputs.items()}, alone)
    with pytest.raises(ValueError, match="a piece of this cache's program"):
        alone.append(whole, 128)
    program.run({name: each[:, :1] for name, each in inputs.items()}, cache)
    with pytest.raises(ValueError, match="behind whole blocks"):
        cache.append(alone.piece(0, 64), 64)
    pair = KVCache(2**20)
    program.run({name: np.repeat(each, 2, 0) for name, each in inputs.items()}, pair)
    with pytest.raises(ValueError, match="batch of 2"):
        pair.piece(0, 64)
    with pytest.raises(ValueError, match="batch of 2"):
        pair.append(small.piece(0, 64), 64)


@given(
    st.sampled_from([(1, 1), (6, 2)]), st.sampled_from([8, 20]), st.integers(1, 3), st.integers(1, 140), st.booleans()
)
def test_a_cache_takes_what_its_program_says(
    heads: tuple[int, int], depth: int, batch: int, tokens: int, narrow: bool
) -> None:
    graph = _texts(*heads, depth, 0, False)
    program, cache = GraphProgram(graph, {}), KVCache(2**30, float16=narrow)
    program.run(
        {each.name: np.ones((batch, tokens, int(each.shape[2]), depth), np.float32) for each in graph.inputs}, cache
    )
    size = CacheSize(program.cache_block_bytes(narrow) // KVCache.block, KVCache.block)
    assert cache.bytes == size.bytes(batch, tokens)


def test_a_cache_that_kept_nothing_takes_any_batch() -> None:
    graph = _texts(2, 1, 8, 0, True)
    program, cache = GraphProgram(graph, {}), KVCache(2**20)
    inputs = {each.name: np.ones((2, 3, int(each.shape[2]), 8), np.float32) for each in graph.inputs[:3]}
    with pytest.raises(ValueError, match="expected a mask"):  # when the first keys are there already
        program.run({**inputs, "attention_mask": np.ones((2, 4), np.int64)}, cache)
    one = {name: each[:1] for name, each in inputs.items()}
    program.run({**one, "attention_mask": np.ones((1, 3), np.int64)}, cache)
    assert (cache.tokens, cache.batch) == (3, 1)


def test_a_mask_of_another_length_is_refused() -> None:
    graph = _texts(2, 1, 8, 0, True)
    inputs = {each.name: np.ones((1, 3, int(each.shape[2]), 8), np.float32) for each in graph.inputs[:3]}
    for cache in (None, KVCache(2**20)):
        with pytest.raises(ValueError, match=r"expected a mask \[1, 3\], found \[1, 4\]"):
            GraphProgram(graph, {}).run({**inputs, "attention_mask": np.ones((1, 4), np.int64)}, cache)


@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(1, 40),
    SEEDS,
    st.booleans(),
    st.booleans(),
    st.data(),
)
def test_rotary(
    batch: int, heads: int, tokens: int, half: int, seed: int, interleaved: bool, one: bool, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    layout = data.draw(st.sampled_from(["bhtd", "bthd"]))
    shape = (batch, heads, tokens) if layout == "bhtd" else (batch, tokens, heads)
    x = _values(rng, *shape, 2 * half + data.draw(st.integers(0, 5)))
    positions = rng.integers(0, 500, (1 if one else batch, tokens))
    frequencies = (0.01 ** np.linspace(0, 1, half)).astype(np.float32)
    attributes = {"interleaved": interleaved, "scaling": data.draw(st.sampled_from([1.0, 1.3])), "layout": layout}
    orders = [rng.permutation(4), rng.permutation(2)]
    graph, inputs, parameters = single_node("rotary", [x, positions, frequencies], attributes, [2], orders)
    wanted = run(graph, parameters, inputs)["y0"]
    found = GraphProgram(graph, parameters).run(inputs, threads=2)["y0"]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
