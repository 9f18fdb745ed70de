from __future__ import annotations

from pathlib import Path

import pytest
import torch

import weightpager as wp
from weightpager.backends.torch.export import export_task
from weightpager.nn.experts import PagedGatedMLP
from weightpager.nn.linear import PagedLinear

INPUTS = {"input_ids": torch.tensor([[2, 4, 9, 12, 7, 3]]), "attention_mask": torch.ones(1, 6, dtype=torch.int64)}


def test_a_decoder_computes_with_fused_layers_what_transformers_does(writer_bundle: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    bundle = wp.Bundle.open(writer_bundle)
    task = next(iter(bundle.tasks))
    export_task(bundle, task, tmp_path / "export")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "export").eval()
    with wp.Engine.from_pretrained(writer_bundle) as engine, engine.task(task) as model, torch.inference_mode():
        fused = [module for module in model.modules() if isinstance(module, PagedGatedMLP)]
        assert len(fused) == model.config.num_hidden_layers
        found, expected = model(**INPUTS).logits, plain(**INPUTS).logits
    torch.testing.assert_close(found.float(), expected.float(), rtol=1e-3, atol=1e-4)


def test_an_encoder_has_nothing_to_fuse(assistant_bundle: Path) -> None:
    task = next(iter(wp.Bundle.open(assistant_bundle).tasks))
    with wp.Engine.from_pretrained(assistant_bundle) as engine, engine.task(task) as model:
        assert not any(isinstance(module, PagedGatedMLP) for module in model.modules())
        assert any(isinstance(module, PagedLinear) for module in model.modules())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_a_fused_layer_in_a_graph(writer_bundle: Path) -> None:
    torch._dynamo.reset()
    task = next(iter(wp.Bundle.open(writer_bundle).tasks))
    with wp.Engine.from_pretrained(writer_bundle) as engine, engine.task(task) as model, torch.no_grad():
        layer = next(module for module in model.modules() if isinstance(module, PagedGatedMLP))
        x = torch.randn(3, layer.up_proj.in_features, dtype=torch.float32)
        graph = torch.compile(layer, backend="aot_eager", fullgraph=True)
        assert torch.equal(graph(x), layer(x))
