"""A model run layer by layer: as the model itself runs, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tiny
import weightpager as wp
from families import ALL_DECODERS, ALL_ENCODERS, ALL_IMAGES, ENCODERS, MIXTURES, PIXELS
from weightpager.backends.torch.architecture import BASE
from weightpager.compiler.data import Batch
from weightpager.compiler.model.paged_weights import repeated_layers
from weightpager.compiler.recovery.layer_stream import LayerStream, check_layers
from weightpager.errors import CompileError
from weightpager.nn.experts import is_linear

FAMILIES: dict[str, Mapping[str, Any]] = {**ALL_ENCODERS, **ALL_DECODERS, **ALL_IMAGES}
REFUSED = {"Albert", "Segformer", "Swin"}
CONVOLVING = {**ENCODERS["DebertaV2"], "conv_kernel_size": 3, "conv_act": "gelu"}


def model_of(family: str, config: Mapping[str, Any]) -> tuple[transformers.PreTrainedModel, Batch, int]:
    """A model of random weights, a batch for it, and how many layers it has."""
    if not hasattr(transformers, f"{family}Config"):
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")(**config)).eval()
    ids = torch.tensor([[2, 4, 9, 12, 7, 3]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch = Batch({"pixel_values": torch.randn(1, *PIXELS)} if family in ALL_IMAGES else inputs, ids)
    linear = tuple(name for name, module in model.named_modules() if is_linear(module))
    names = repeated_layers(model)
    found = [n for n, layer in enumerate(names, 1) if any(name.startswith(f"{layer}.") for name in linear)]
    return model, batch, max(found, default=len(names))  # GPT-2's layers become linear when they are loaded


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - MIXTURES.keys() - REFUSED))
def test_layers_that_feed_each_other_lead_to_what_the_model_computes(family: str) -> None:
    model, batch, layers = model_of(family, FAMILIES[family])
    check_layers(model, batch, layers)
    stream, given = LayerStream(model, [batch]), []
    for layer in range(layers):
        stream.advance(layer, {})
    last = model.get_submodule(repeated_layers(model)[layers - 1])
    last.register_forward_hook(lambda _module, _taken, output: given.append(output))
    with torch.inference_mode():
        model(**batch.inputs)
    wanted = given[0][0] if isinstance(given[0], tuple) else given[0]
    torch.testing.assert_close(stream._calls[0].hidden.float(), wanted, rtol=0.0, atol=5e-2)


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        ("Albert", FAMILIES["Albert"], r"expected layers that run once each, found encoder\.albert_layer_groups\.0"),
        ("DebertaV2", CONVOLVING, r"what the one before gives, found other inputs of encoder\.layer\.1"),
        ("Segformer", FAMILIES["Segformer"], "closed-form recovery: expected layers that"),
        ("Swin", FAMILIES["Swin"], "closed-form recovery: expected layers that"),
    ],
)
def test_layers_that_do_not_feed_each_other_are_refused(family: str, config: Mapping[str, Any], message: str) -> None:
    with pytest.raises(CompileError, match=message + r".*; use 'recover: \{method: finetune\}' or none"):
        check_layers(*model_of(family, config))


def test_a_layer_that_takes_a_part_of_an_input_is_not_fed_like_one_that_takes_it_whole() -> None:
    model, batch, _ = model_of("Bert", FAMILIES["Bert"])
    stream, attention = LayerStream(model, [batch]), "encoder.layer.0.attention.self"
    value = model.get_submodule(f"{attention}.value")
    value.register_forward_pre_hook(lambda _module, taken: (taken[0][:, 0],))  # it begins at the same address
    names = [f"{BASE}{attention}.{layer}" for layer in ("query", "key", "value")]
    assert stream.fed_alike(0, names) == [names[:2], names[2:]]


def test_it_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    content = tiny.assistant(tmp_path, recover="closed-form")
    torch.manual_seed(0)
    transformers.AlbertModel(transformers.AlbertConfig(**ENCODERS["Albert"])).save_pretrained(content["model"])
    told: list[str] = []
    with pytest.raises(CompileError, match="run again"):
        wp.compile(content, out=tmp_path / "a.bundle", progress=lambda stage, *_: told.append(stage))
    assert not any("train" in stage for stage in told)
