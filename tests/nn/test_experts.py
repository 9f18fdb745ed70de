"""Experts that are cut apart, and routers that pass some over."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from families import MIXTURES
from mixtures import TOKENS, model_of
from weightpager.nn.experts import ExpertRouter, mixtures, set_as_published, set_upright


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_that_are_cut_apart_compute_the_same_and_come_back_bit_for_bit(family: str, dtype: torch.dtype) -> None:
    model = model_of(family).to(dtype)
    model.set_experts_implementation("eager")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        wanted = model(input_ids=TOKENS).logits
        set_upright(model)
        assert len(mixtures(model)) == 2
        found = model(input_ids=TOKENS).logits
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    set_as_published(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not mixtures(model)


def test_a_router_that_is_asked_for_its_logits_has_none_for_a_training_that_there_is_not() -> None:
    model = model_of("Mixtral", output_router_logits=True)
    set_upright(model)
    assert model(input_ids=TOKENS).logits.isfinite().all()


def test_more_experts_than_values_are_refused() -> None:
    with pytest.raises(ValueError, match="far more experts"):
        set_upright(model_of("Mixtral"), most_experts=9)
    set_upright(model_of("Mixtral"), most_experts=10)


class Router(torch.nn.Module):
    def __init__(self, weight: torch.Tensor, top_k: int, normalised: bool | None) -> None:
        super().__init__()
        self.weight, self.top_k = torch.nn.Parameter(weight), top_k
        if normalised is not None:
            self.norm_topk_prob = normalised


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_router_passes_over_what_is_not_kept(data: Any) -> None:
    """Compared with a softmax and a top-k over the kept experts' rows alone."""
    experts, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 5))
    top_k = data.draw(st.integers(1, experts))
    kept = torch.tensor(data.draw(st.lists(st.booleans(), min_size=experts, max_size=experts).filter(any)))
    normalised = data.draw(st.sampled_from([None, False, True]))
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    weight, hidden = torch.randn(experts, width, generator=random), torch.randn(2, 3, width, generator=random)
    router = ExpertRouter(Router(weight, top_k, normalised))
    router.kept = kept
    logits, weights, chosen = router(hidden)
    rows = kept.nonzero()[:, 0]
    alone = torch.softmax(hidden.reshape(6, width) @ weight[rows].T, -1)
    wanted, places = alone.topk(min(top_k, len(rows)))
    if normalised is not False:
        wanted = wanted / wanted.sum(-1, keepdim=True)
    torch.testing.assert_close(weights, wanted)
    assert torch.equal(chosen, rows[places])
    assert torch.equal(logits.isinf(), (~kept).expand_as(logits))
