"""Benchmarks for which a tiny bundle is enough, with the backend that they take by themselves."""

from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config

from benchmarks.fleet.transfers import trained_again
from benchmarks.switching import granularity, task_scaling
from benchmarks.switching.__main__ import TOKENS, first_outputs, pairs, resident, rounds
from weightpager.blocks import BlockShape
from weightpager.bundle import Bundle
from weightpager.errors import ConfigError
from weightpager.kernels.choice import NATIVE
from weightpager_lab.synthetic_bundle import Recipe, bundle_of

pytestmark = pytest.mark.slow

_CONFIG = Qwen2Config(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=1000,
    tie_word_embeddings=True,
    dtype=torch.bfloat16,
)
RECIPE = Recipe("tiny", _CONFIG, BlockShape(8, 16), tasks=3, density=0.5, common=0.4, page_bytes=4096)


@pytest.fixture(autouse=True)
def _a_device_s_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEIGHTPAGER_BACKEND")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle_of(RECIPE, tmp_path_factory.mktemp("drawn"), lambda _: None)


def test_switches(drawn: Bundle) -> None:
    assert len(list(pairs("tiny", drawn, repeats=1))) == 6
    assert all(row.load_ms for row in rounds("tiny", drawn))
    assert [row.logits for row in first_outputs("tiny", drawn, repeats=1)] == [1, TOKENS]
    assert resident("tiny", drawn, switches=100).resident_p99_ms


def test_page_sizes_and_numbers_of_tasks(drawn: Bundle) -> None:
    assert granularity.measure(RECIPE, drawn).page_bytes == 4096
    assert task_scaling.measure(RECIPE, drawn).tasks == 3


def test_a_task_that_is_trained_again_has_another_page_at_least(assistant_bundle: Path, tmp_path: Path) -> None:
    found = trained_again(assistant_bundle, tmp_path)
    assert all(figures["changed_bytes"] == figures["lacking_bytes"] > 0 for figures in found.values())


def test_a_task_without_pages_of_its_own_is_not_trained_again(tmp_path: Path) -> None:
    shared = bundle_of(replace(RECIPE, common=1.0), tmp_path, lambda _: None)
    with pytest.raises(ConfigError, match="expected pages that only the last task needs, found none"):
        trained_again(shared.path, tmp_path / "work")


@pytest.mark.skipif(not NATIVE, reason="the native kernels are not built")
def test_what_a_process_has_resident(
    assistant_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["steps", str(assistant_bundle), "animal", "16MiB", "cat"])
    runpy.run_module("benchmarks.device.steps", run_name="__main__")
    assert min(json.loads(capsys.readouterr().out).values()) > 0
