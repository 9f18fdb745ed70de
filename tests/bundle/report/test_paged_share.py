"""How much of a model is paged, counted from a bundle's own files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from transformers import FlexOlmoConfig, FlexOlmoForCausalLM

import tiny
from command import Command
from weightpager.backends.torch.architecture import empty_module, read_config
from weightpager.bundle import Bundle
from weightpager.bundle.report.compile_report import read_report
from weightpager.bundle.report.page_statistics import PagedShare, paged_share


def test_parameters_are_counted_by_why_they_are_not_paged() -> None:
    found = PagedShare.of(
        [60, 40], {"table": 70, "bias": 10, "head": 10, "norm": 10}, {"table": "embedding", "head": "head"}
    )
    assert (found.paged, found.share, found.is_small) == (100, 0.5, False)
    assert list(found.others.items()) == [("embedding", 70), ("norms, biases and other vectors", 20), ("head", 10)]
    assert found.words == "50.0% of the parameters"


def test_what_stays_is_named_where_less_than_half_is_paged() -> None:
    found = PagedShare.of([10], {"a": 60, "b": 20, "c": 8, "d": 2}, {"a": "experts", "b": "embedding", "c": "head"})
    assert found.is_small
    assert "10.0% of the parameters, less than half" in found.words
    assert found.words.endswith("60.0% experts; 20.0% embedding; 8.0% head")


def test_a_bundle_has_what_its_module_has(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    found = paged_share(bundle)
    sizes = [
        sum(tensor.numel() for tensor in empty_module(read_config(bundle), task).state_dict().values())
        for task in bundle.tasks.values()
    ]
    assert found.paged + sum(found.others.values()) == max(sizes)
    assert found.paged == sum(weight.out_features * weight.in_features for weight in bundle.manifest.weights)
    report = read_report(bundle)
    assert (report.paged_share, report.not_paged) == (found.share, dict(found.others))


def test_inspect_states_the_share(weightpager: Command, assistant_bundle: Path) -> None:
    found = paged_share(Bundle.open(assistant_bundle))
    assert f"paged: {found.words}" in weightpager("inspect", assistant_bundle).out
    facts = json.loads(weightpager("inspect", assistant_bundle, "--json").out)
    assert facts["paged_share"] == pytest.approx(found.share)
    assert facts["parameters"] == {"paged": found.paged, "others": dict(found.others)}


@pytest.mark.slow
def test_a_compile_warns_where_most_stays_in_memory(weightpager: Command, tmp_path: Path) -> None:
    content = tiny.writer(tmp_path)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = FlexOlmoConfig(
        **sizes, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, vocab_size=16, pad_token_id=0
    )
    FlexOlmoForCausalLM(config).save_pretrained(content["model"])
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    found = weightpager("compile", tmp_path / "tasks.yaml", "--out", tmp_path / "a.bundle", "-q")
    assert re.search(r"paged: 1\d\.\d% of the parameters, less than half", found.out)
    assert "experts in one tensor (FlexOlmoExperts) of a family that isn't known" in found.out
