"""Mixtures of experts from masks to answers: an engine gives what transformers gives under the same masks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import weightpager as wp
from benchmarks.fuzz.sealing import rewrite_file
from families import MIXTURES
from mixtures import TOKENS, Bools, expected, masks_of, model_of, source_of, write
from weightpager.backends.torch.export import export_task
from weightpager.bundle import Bundle
from weightpager.compiler.data import Batch
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.training.evaluate import Replaced
from weightpager.compiler.training.loss import masked_logits
from weightpager.compiler.training.masks import Masks
from weightpager.compiler.training.sparse_products import SparseProducts
from weightpager.errors import BundleFormatError, ConfigError
from weightpager.nn.experts import PagedGatedMLP, mixtures
from weightpager.runtime.budget import smallest_budget

TASKS = 3


def drawn(source: DenseModel, data: Any) -> Masks:
    """Whole experts, any blocks, or some of either; every router has an expert left."""
    random = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    dropped, density = data.draw(st.sampled_from([0.0, 0.3, 0.8])), data.draw(st.sampled_from([0.3, 0.9, 1.0]))
    keep: dict[str, Bools] = {info.name: random.random((info.grid.count, TASKS)) < density for info in source.paged}
    for mixture in mixtures(next(iter(source.models.values()))):
        lost = random.random((len(mixture.experts), TASKS)) < dropped
        lost[random.integers(len(lost), size=TASKS), range(TASKS)] = False
        for number, of_expert in enumerate(lost):
            for name in mixture.weights(number):
                mask = keep["base_" + name]
                mask &= ~of_expert
                mask[0] |= ~of_expert
    return masks_of(source, keep)


@pytest.mark.slow
@given(st.data())
def test_any_masks_and_switches_give_what_transformers_gives_under_them(data: Any) -> None:
    family = data.draw(st.sampled_from(list(MIXTURES)))
    sizes = {"hidden_size": data.draw(st.sampled_from([32, 48])), "num_hidden_layers": 2}
    inner = data.draw(st.sampled_from([20, 24, 40]))
    sizes |= {"intermediate_size": inner, "moe_intermediate_size": inner}
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = source_of(model_of(family, **sizes), folder, TASKS, dtype="float32")
        masks = drawn(source, data)
        write(source, masks, folder / "a.bundle", data.draw(st.sampled_from([4096, None])))
        bundle = Bundle.open(folder / "a.bundle")
        least, most = smallest_budget(bundle), 4 * smallest_budget(bundle)
        budget = least + int((most - least) * data.draw(st.sampled_from([0.0, 0.1, 1.0])))
        wanted = {task: expected(family, source, masks, task, **sizes) for task in bundle.tasks}
        with wp.Engine.from_pretrained(bundle.path, budget=budget) as engine:
            for task in data.draw(st.lists(st.sampled_from(list(bundle.tasks)), min_size=1, max_size=6)):
                with engine.task(task) as module, torch.inference_mode():
                    torch.testing.assert_close(module(input_ids=TOKENS).logits, wanted[task], rtol=1e-3, atol=1e-3)
            assert engine.verify() == []


def without(*numbers: int) -> Callable[[DenseModel], Masks]:
    """Masks of one task that has dropped experts of the first layer, by a matrix each."""

    def masks(source: DenseModel) -> Masks:
        first = mixtures(next(iter(source.models.values())))[0]
        lost = {f"base_{first.weights(number)[number % 3]}" for number in numbers}
        return masks_of(
            source, {info.name: np.zeros((info.grid.count, 1), bool) for info in source.paged if info.name in lost}
        )

    return masks


def one_task(
    folder: Path, masks: Callable[[DenseModel], Masks], family: str = "Qwen2Moe", **settings: Any
) -> DenseModel:
    source = source_of(model_of(family), folder, 1, **settings)
    write(source, masks(source), folder / "a.bundle")
    return source


def test_experts_and_a_shared_one_are_gated_parts_over_pages(tmp_path: Path) -> None:
    one_task(tmp_path, without())
    with wp.Engine.from_pretrained(tmp_path / "a.bundle") as engine, engine.task("task-0") as module:
        first = module.model.layers[0].mlp
        assert all(isinstance(part, PagedGatedMLP) for part in (*first.experts, first.shared_expert))
        assert isinstance(first.gate.weight, torch.nn.Parameter)


def test_a_router_passes_over_an_expert_that_has_lost_one_of_its_matrices(tmp_path: Path) -> None:
    one_task(tmp_path, without(0, 1, 2))
    with wp.Engine.from_pretrained(tmp_path / "a.bundle") as engine, engine.task("task-0") as module:
        assert [mixture.router.kept.tolist() for mixture in mixtures(module)] == [[False] * 3 + [True] * 2, [True] * 5]
        seen: list[Any] = []
        module.model.layers[0].mlp.gate.register_forward_hook(lambda _, __, found: seen.append(found[2]))
        module(input_ids=TOKENS)
        assert set(seen[0].flatten().tolist()) == {3, 4}


def test_the_compiler_computes_as_the_engine_will(tmp_path: Path) -> None:
    """What is trained and chosen under masks is what runs; as a module too, which is as before afterwards."""
    source = one_task(tmp_path, without(0, 4), dtype="float32")
    masks, model = without(0, 4)(source), source.models["task-0"]
    with torch.inference_mode():
        replaced = Replaced(model, masks.parameters(source, "task-0", source.paged))
        wanted, dense = expected("Qwen2Moe", source, masks, "task-0"), model(input_ids=TOKENS).logits
        torch.testing.assert_close(replaced(input_ids=TOKENS).logits, wanted, rtol=1e-3, atol=1e-3)
        with replaced.as_module() as module:
            torch.testing.assert_close(module(input_ids=TOKENS).logits, wanted, rtol=1e-3, atol=1e-3)
        assert torch.equal(model(input_ids=TOKENS).logits, dense)
        assert not torch.allclose(dense, wanted, rtol=1e-2)


def test_training_that_skips_dropped_blocks_passes_over_the_same_experts(tmp_path: Path) -> None:
    source = source_of(model_of("Qwen2Moe"), tmp_path, 1)
    masks, batch = (
        without(0, 4)(source),
        Batch({"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}, TOKENS),
    )
    with torch.no_grad():
        wanted = masked_logits(source, masks, "task-0", batch)
        found = SparseProducts(source, masks, None).logits("task-0", batch)
    torch.testing.assert_close(found, wanted, rtol=5e-2, atol=5e-2)


def test_a_bundle_that_leaves_a_router_no_expert_is_refused(tmp_path: Path) -> None:
    one_task(tmp_path, without(*range(5)))
    with (
        pytest.raises(BundleFormatError, match=r"tasks/task-0.*layers.0.mlp.experts.*blocks of at least one.*none"),
        wp.Engine.from_pretrained(tmp_path / "a.bundle") as engine,
        engine.task("task-0"),
    ):
        pass


def test_far_more_experts_than_a_bundle_has_are_not_built(tmp_path: Path) -> None:
    one_task(tmp_path, without())
    path = tmp_path / "a.bundle" / "model" / "config.json"
    change = json.loads(path.read_bytes()) | {"num_experts": 2**14}
    rewrite_file(tmp_path / "a.bundle", "model/config.json", json.dumps(change).encode())
    with (
        pytest.raises(BundleFormatError, match="far more experts than it has weights"),
        wp.Engine.from_pretrained(tmp_path / "a.bundle") as engine,
        engine.task("task-0"),
    ):
        pass


def test_what_transformers_can_say_is_exported(tmp_path: Path) -> None:
    source = one_task(tmp_path, without(), dtype="float32")
    found = AutoModelForCausalLM.from_pretrained(
        export_task(Bundle.open(tmp_path / "a.bundle"), "task-0", tmp_path / "x")
    )
    with torch.inference_mode():
        wanted = expected("Qwen2Moe", source, without()(source), "task-0")
        torch.testing.assert_close(found.eval()(input_ids=TOKENS).logits, wanted, rtol=1e-4, atol=1e-4)


def test_what_it_cannot_say_is_not(tmp_path: Path) -> None:
    one_task(tmp_path, without(2))
    with pytest.raises(ConfigError, match="task-0 has dropped experts, which its routers pass over"):
        export_task(Bundle.open(tmp_path / "a.bundle"), "task-0", tmp_path / "x")
    assert not (tmp_path / "x").exists()
