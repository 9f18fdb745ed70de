"""Every operator of the reference, compared with torch."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from graphs import classifier
from weightpager.graph.operators import OPERATORS
from weightpager.graph.reference import FUNCTIONS, KeyValues, run


def test_the_reference_has_all_operators_of_the_table() -> None:
    assert FUNCTIONS.keys() == OPERATORS.keys()


def _random(rng: np.random.Generator, *shape: int) -> Any:
    return rng.normal(0, 2, shape).astype(np.float32)


def _near(found: Any, wanted: Tensor, within: float = 1e-5) -> None:
    assert found.dtype == wanted.numpy().dtype
    assert found.shape == tuple(wanted.shape)
    np.testing.assert_allclose(found, wanted.numpy(), rtol=within, atol=within)


_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "silu": functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "exp": torch.exp,
    "negate": torch.neg,
    "sin": torch.sin,
    "cos": torch.cos,
}


@pytest.mark.parametrize("name", _UNARY)
def test_elements(name: str) -> None:
    x = np.concatenate([np.linspace(-30, 30, 4001), [0.0, -0.0]]).astype(np.float32)
    _near(FUNCTIONS[name](x), _UNARY[name](torch.from_numpy(x)))


@pytest.mark.parametrize("name", ["sqrt", "rsqrt"])
def test_roots(name: str) -> None:
    x = np.linspace(0.01, 30, 999, dtype=np.float32)
    _near(FUNCTIONS[name](x), getattr(torch, name)(torch.from_numpy(x)))
    _near(FUNCTIONS["power"](x, scalar=-0.5), torch.from_numpy(x).pow(-0.5))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate: str) -> None:
    x = np.linspace(-12, 12, 9999, dtype=np.float32)
    _near(
        FUNCTIONS["gelu"](x, approximate=approximate),
        functional.gelu(torch.from_numpy(x), approximate=approximate),
        2e-6,
    )


_BINARY = {
    "add": torch.add, "subtract": torch.sub, "multiply": torch.mul, "divide": torch.div, "equal": torch.eq,
    "not_equal": torch.ne, "less": torch.lt, "less_equal": torch.le, "greater": torch.gt, "greater_equal": torch.ge,
}  # fmt: skip


@pytest.mark.parametrize("name", _BINARY)
def test_pairs_broadcast_and_take_a_number(name: str) -> None:
    rng = np.random.default_rng(0)
    x, y = _random(rng, 3, 1, 5).round(), _random(rng, 4, 1).round() + 0.5
    _near(FUNCTIONS[name](x, y, scalar=None), _BINARY[name](torch.from_numpy(x), torch.from_numpy(y)))
    _near(FUNCTIONS[name](x, None, scalar=2.0), _BINARY[name](torch.from_numpy(x), 2.0))


@settings(max_examples=60)
@given(st.data())
def test_attention(data: st.DataObject) -> None:
    draw = lambda least, most: data.draw(st.integers(least, most))  # noqa: E731
    batch, groups, each, keys = draw(1, 3), draw(1, 3), draw(1, 3), draw(1, 9)
    tokens, features, values = draw(1, keys), draw(1, 9), draw(1, 9)
    causal, window, softcap = (
        data.draw(st.booleans()),
        data.draw(st.sampled_from([0, 1, 3])),
        data.draw(st.sampled_from([0.0, 3.0])),
    )
    layout = data.draw(st.sampled_from(["bhtd", "bthd"]))
    rng = np.random.default_rng(draw(0, 2**16))
    query = _random(rng, batch, groups * each, tokens, features)
    key, value = _random(rng, batch, groups, keys, features), _random(rng, batch, groups, keys, values)
    mask = rng.integers(0, 2, (batch, keys)) if data.draw(st.booleans()) else None
    around = {"scale": 0.3, "causal": causal, "window": window, "softcap": softcap, "index": 0, "layout": layout}
    turned = (lambda x: x.swapaxes(1, 2)) if layout == "bthd" else (lambda x: x)
    found = turned(FUNCTIONS["attention"](turned(query), turned(key), turned(value), mask, **around))

    position = torch.arange(keys - tokens, keys)[:, None]
    distance = position - torch.arange(keys)
    seen = (distance >= 0) if causal else torch.ones_like(distance, dtype=torch.bool)
    seen = seen & (distance.abs() < window) if window else seen
    whole = seen[None, None] if mask is None else seen[None, None] & torch.from_numpy(mask).bool()[:, None, None]
    scores = torch.from_numpy(query) @ torch.from_numpy(key).repeat_interleave(each, 1).mT * 0.3
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    weights = scores.masked_fill(~whole, -torch.inf).softmax(-1).nan_to_num(0)  # of no key at all, nothing
    _near(found, weights @ torch.from_numpy(value).repeat_interleave(each, 1))


@pytest.mark.parametrize("layout", ["bhtd", "bthd"])
def test_segments_are_attentions_of_their_own(layout: str) -> None:
    """Tokens that have the same number, but others between, don't see each other."""
    rng = np.random.default_rng(0)
    query, key, value = _random(rng, 2, 4, 9, 8), _random(rng, 2, 2, 9, 8), _random(rng, 2, 2, 9, 3)
    segments = np.array([[5, 5, 1, 1, 1, 5, 2, 2, 2], [0] * 9])

    def turned(x: Any) -> Any:
        return x if layout == "bhtd" else x.swapaxes(1, 2)

    found = FUNCTIONS["segment_attention"](*map(turned, (query, key, value)), segments, scale=0.3, layout=layout)
    assert found.dtype == np.float32
    for text, ends in enumerate(((0, 2, 5, 6, 9), (0, 9))):
        for start, end in pairwise(ends):
            alone = (torch.from_numpy(each[text : text + 1, :, start:end]) for each in (query, key, value))
            wanted = functional.scaled_dot_product_attention(*alone, scale=0.3, enable_gqa=True)
            _near(turned(found)[text : text + 1, :, start:end], wanted)


def test_rotary_turns_each_angle_by_its_own_position() -> None:
    rng = np.random.default_rng(0)
    x, positions, inv_freq = _random(rng, 2, 3, 5, 8), rng.integers(0, 9, (3, 2, 5)), _random(rng, 4)
    each = positions[[0, 1, 1, 2]].transpose(1, 2, 0)  # [texts, tokens, angles]
    options = {"interleaved": False, "scaling": 1.0, "layout": "bhtd"}
    found = FUNCTIONS["rotary"](x, each, inv_freq, **options)
    for angles, of in (([0], 0), ([1, 2], 1), ([3], 2)):
        whole, features = (
            FUNCTIONS["rotary"](x, positions[of], inv_freq, **options),
            [*angles, *(4 + i for i in angles)],
        )
        np.testing.assert_array_equal(found[..., features], whole[..., features])


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("layout", ["bhtd", "bthd"])
def test_rotary_turns_as_transformers_do(interleaved: bool, layout: str) -> None:
    from transformers.models.gptj.modeling_gptj import rotate_every_two
    from transformers.models.llama.modeling_llama import rotate_half

    rng = np.random.default_rng(0)
    x, positions, inv_freq = _random(rng, 2, 3, 5, 8), np.arange(5)[None] + [[0], [7]], _random(rng, 3)
    given = x if layout == "bhtd" else x.swapaxes(1, 2)
    found = FUNCTIONS["rotary"](given, positions, inv_freq, interleaved=interleaved, scaling=1.5, layout=layout)
    angles = torch.from_numpy(positions).float()[:, None, :, None] * torch.from_numpy(inv_freq)
    angles = angles.repeat_interleave(2, -1) if interleaved else torch.cat([angles, angles], -1)
    turned, rest = torch.from_numpy(x[..., :6]), torch.from_numpy(x[..., 6:])
    half = rotate_every_two(turned) if interleaved else rotate_half(turned)
    wanted = torch.cat([turned * angles.cos() * 1.5 + half * angles.sin() * 1.5, rest], -1)
    _near(found if layout == "bhtd" else found.swapaxes(1, 2), wanted, 3e-5)


@pytest.mark.parametrize("weights", [0, 1, 2])
def test_norms(weights: int) -> None:
    rng = np.random.default_rng(weights)
    x, y, weight, bias = _random(rng, 2, 3, 8) + 5, _random(rng, 2, 3, 8), _random(rng, 8), _random(rng, 8)
    given = (weight if weights else None, bias if weights > 1 else None)
    wanted = functional.layer_norm(
        torch.from_numpy(x + y), (8,), *(None if each is None else torch.from_numpy(each) for each in given), 1e-5
    )
    total, norm = FUNCTIONS["add_layer_norm"](x, y, *given, epsilon=1e-5)
    _near(total, torch.from_numpy(x + y))
    _near(norm, wanted, 2e-5)
    wanted = functional.rms_norm(torch.from_numpy(x + y), (8,), torch.from_numpy(weight + 1) if weights else None, 1e-5)
    total, norm = FUNCTIONS["add_rms_norm"](x, y, given[0], epsilon=1e-5, offset=1)
    _near(total, torch.from_numpy(x + y))
    _near(norm, wanted)


@pytest.mark.parametrize("keep", [False, True])
def test_sums(keep: bool) -> None:
    x = _random(np.random.default_rng(0), 2, 3, 4)
    given = torch.from_numpy(x)
    _near(FUNCTIONS["mean"](x, axes=[1, 2], keep=keep), given.mean((1, 2), keep))
    _near(FUNCTIONS["sum"](x, axes=[0], keep=keep), given.sum(0, keep))
    _near(FUNCTIONS["sum"](x > 0, axes=[1], keep=keep), (given > 0).sum(1, keep))
    _near(FUNCTIONS["softmax"](x, axis=1), given.softmax(1))
    _near(FUNCTIONS["cumsum"](x > 0, axis=1), (given > 0).cumsum(1))
    _near(FUNCTIONS["argmax"](x, axis=2), given.argmax(2))


@pytest.mark.parametrize(("activation", "same"), [
    ("none", lambda x: x), ("gelu", functional.gelu), ("gelu_tanh", lambda x: functional.gelu(x, approximate="tanh")),
    ("relu", torch.relu), ("silu", functional.silu), ("tanh", torch.tanh),
    ("quick_gelu", lambda x: x * (1.702 * x).sigmoid()),
])  # fmt: skip
def test_linear_layers(activation: str, same: Callable[[Tensor], Tensor]) -> None:
    rng = np.random.default_rng(0)
    x, weight, up, bias = _random(rng, 2, 3, 8), _random(rng, 5, 8), _random(rng, 5, 8), _random(rng, 5)
    given, product = torch.from_numpy(x), torch.from_numpy(x) @ torch.from_numpy(weight).T
    _near(FUNCTIONS["linear"](x, weight, None, activation=activation), same(product))
    _near(FUNCTIONS["linear"](x, weight, bias, activation=activation), same(product + torch.from_numpy(bias)))
    wanted = same(product) * (given @ torch.from_numpy(up).T)
    _near(FUNCTIONS["gated_linear"](x, weight, up, activation=activation), wanted, 2e-5)


@settings(max_examples=30)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.booleans())
def test_convolutions(groups: int, each: int, kernel: int, stride: int, padding: int, has_bias: bool) -> None:
    rng = np.random.default_rng(groups + kernel)
    x, weight = _random(rng, 2, groups * each, 6, 7), _random(rng, groups * 2, each, kernel, kernel)
    bias = _random(rng, groups * 2) if has_bias else None
    found = FUNCTIONS["conv2d"](x, weight, bias, stride=[stride, 1], padding=[padding, 1], groups=groups)
    given = None if bias is None else torch.from_numpy(bias)
    _near(
        found,
        functional.conv2d(torch.from_numpy(x), torch.from_numpy(weight), given, (stride, 1), (padding, 1), 1, groups),
        2e-5,
    )


def test_shapes() -> None:
    rng = np.random.default_rng(0)
    x, ids = _random(rng, 2, 3, 4), rng.integers(0, 3, (2, 2))
    given = torch.from_numpy(x)
    _near(FUNCTIONS["reshape"](x, shape=[-1, 6]), given.reshape(-1, 6))
    _near(FUNCTIONS["permute"](x, axes=[2, 0, 1]), given.permute(2, 0, 1))
    _near(FUNCTIONS["slice"](x, axis=2, start=-3, end=None, step=2), given[:, :, -3::2])
    _near(FUNCTIONS["concat"](x, x, axis=1), torch.cat([given, given], 1))
    _near(FUNCTIONS["expand"](x[:, None], shape=[5, -1, 6, 3, 4]), given[:, None].expand(5, -1, 6, 3, 4))
    _near(FUNCTIONS["arange"](start=1, end=9, step=3), torch.arange(1, 9, 3))
    _near(FUNCTIONS["full"](shape=[2, 3], value=2, dtype="int64"), torch.full((2, 3), 2))
    index = rng.integers(0, 3, (2, 5, 4))
    _near(FUNCTIONS["gather"](x, index, axis=1), given.gather(1, torch.from_numpy(index)))
    _near(FUNCTIONS["take"](x, ids, axis=1), given[:, torch.from_numpy(ids)])
    _near(FUNCTIONS["embedding"](x[0], ids), functional.embedding(torch.from_numpy(ids), given[0]))
    _near(FUNCTIONS["matmul"](x, x.swapaxes(1, 2)), given @ given.mT)


def test_choices() -> None:
    x = _random(np.random.default_rng(0), 3, 4)
    given = torch.from_numpy(x)
    _near(FUNCTIONS["where"](x > 0, x, np.float32(1)), torch.where(given > 0, given, torch.ones(())))
    _near(FUNCTIONS["cast"](x, dtype="int64"), given.long())
    _near(FUNCTIONS["cast"](x > 0, dtype="float32"), (given > 0).float())
    _near(FUNCTIONS["cast"](np.arange(3), dtype="bool"), torch.arange(3).bool())
    _near(FUNCTIONS["logical_and"](x > 0, x < 1), (given > 0) & (given < 1))
    _near(FUNCTIONS["logical_or"](x > 1, x < 0), (given > 1) | (given < 0))
    _near(FUNCTIONS["logical_not"](x > 1), ~(given > 1))


@pytest.mark.parametrize("ids", [[[3]], [[-1]]])
def test_an_id_outside_of_its_table_is_refused(ids: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="expected ids from 0 to 2"):
        FUNCTIONS["embedding"](np.ones((3, 2), np.float32), np.array(ids))


def test_a_graph_goes_on_from_earlier_tokens() -> None:
    rng = np.random.default_rng(0)
    table, norm = _random(rng, 20, 8), _random(rng, 8)
    parameters = {"base_model.table.weight": table, "norm.weight": norm, "head.weight": _random(rng, 3, 8)}
    graph = classifier()
    ids = rng.integers(0, 20, (2, 5))
    mask = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])
    whole = run(graph, parameters, {"input_ids": ids[:, -1:], "attention_mask": mask[:, -1:]})["logits"]
    cache = KeyValues()
    for start, end in ((0, 2), (2, 4), (4, 5)):
        found = run(graph, parameters, {"input_ids": ids[:, start:end], "attention_mask": mask[:, :end]}, cache)[
            "logits"
        ]
    assert cache.of[0][0].shape == (2, 2, 5, 4)
    x = table[ids].reshape(2, 5, 2, 4)
    seen = FUNCTIONS["attention"](x, x, x, mask, scale=0.5, causal=True, window=0, softcap=0.0, index=0, layout="bthd")[
        :, -1
    ].reshape(2, 8)
    normed = FUNCTIONS["layer_norm"](table[ids[:, -1]] + seen, norm, None, epsilon=1e-5) * graph.constants[0]
    np.testing.assert_allclose(found, normed @ parameters["head.weight"].T, rtol=1e-5, atol=1e-5)
    assert not np.allclose(found, whole)
