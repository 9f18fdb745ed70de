"""What a compile will need is told before it starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

import tiny
import weightpager as wp
from mixtures import model_of, source_of
from weightpager.bundle.report.compile_report import read_report
from weightpager.compiler import task_file
from weightpager.compiler.estimates.activations import activation_bytes, key_value_bytes
from weightpager.compiler.estimates.memory import bound
from weightpager.compiler.estimates.memory_check import check_stages, check_training, choose_scratch
from weightpager.compiler.estimates.training_bytes import dense_training_bytes, recover_bytes, training_bytes
from weightpager.compiler.model import dense_model as sources
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.prepare import prepare
from weightpager.errors import CompileError
from weightpager.machine.process_memory import resident_memory


def load(folder: Path, **changes: Any) -> DenseModel:
    return sources.load(task_file.from_dict(tiny.assistant(folder, **changes)))


def check(source: DenseModel, available: int | None) -> None:
    check_training(source, available)
    check_stages(source, available, reorders=source.task_file.reorder)


@pytest.mark.slow
def test_a_tiny_model_fits_and_a_huge_batch_does_not(tmp_path: Path) -> None:
    check(load(tmp_path), 1 << 30)
    check(load(tmp_path), None)
    huge = load(tmp_path, training={"batch": 2**30})
    with pytest.raises(CompileError, match=r"training\.batch: expected .* 1024 MiB of free memory, found 1073741824 t"):
        check(huge, 1 << 30)
    huge = load(tmp_path, calibration={"items": 8, "max_length": 16, "batch": 2**30})
    with pytest.raises(CompileError, match=r"calibration\.batch: expected"):
        check(huge, 1 << 30)
    huge = load(tmp_path, recover={"method": "finetune", "batch": 2**30})
    with pytest.raises(CompileError, match=r"recover\.batch: expected"):
        check(huge, 1 << 30)


@pytest.mark.parametrize(
    ("make", "section", "otherwise"),
    [
        (tiny.assistant, "training", "take a smaller model, or tasks that bring a head"),
        (tiny.assistant, "recover", "set recover: closed-form, or none, which take less"),
        (tiny.camera, "training", "take a smaller model, or tasks that bring a head"),
    ],
)
def test_a_smaller_batch_is_advised_where_it_is_enough(
    tmp_path: Path, make: Callable[..., dict[str, Any]], section: str, otherwise: str
) -> None:
    specs: dict[str, dict[str, Any]] = {key: {"batch": 1} for key in ("training", "recover")}
    specs["recover"]["method"] = "finetune" if section == "recover" else "none"
    specs[section]["batch"] = batch = 2**20
    source, texts = sources.load(task_file.from_dict(make(tmp_path, **specs))), make is tiny.assistant
    one = max(activation_bytes(source, task, 1) for task in source.models)
    alone = {"training": dense_training_bytes, "recover": recover_bytes}[section](source) - batch * one

    def advice(available: int) -> str:
        with pytest.raises(CompileError, match=rf"{section}\.batch: expected .* MiB; ") as caught:
            check_training(source, available)
        return str(caught.value).rpartition("; ")[2]

    assert advice(alone + one) == "take a smaller batch" + " or max_length" * texts
    assert advice(alone + one - 1) == ("take a batch of 1 and a smaller max_length" if texts else otherwise)
    assert advice(alone - 1) == otherwise


def test_a_mixture_of_experts_is_not_sent_to_closed_form(tmp_path: Path) -> None:
    source = source_of(model_of("Qwen2Moe"), tmp_path, recover={"method": "finetune"})
    with pytest.raises(CompileError, match=r"recover\.batch: expected .* MiB; set recover: none$"):
        check_training(source, 0)


def test_reordering_counts_what_all_tasks_hold_at_once(tmp_path: Path) -> None:
    source = load(tmp_path)
    tasks, sums = len(source.task_file.tasks), source.paged_bytes
    stages = [bound(source, None, reorders=reorders, on_disk=False).stages for reorders in (True, False)]
    assert stages[0]["calibrate"] - stages[1]["calibrate"] == sums * (tasks - 1)
    assert "reorder" not in stages[1]
    enough = max(stages[0].values()) - source.parameter_bytes  # which are in memory already
    check_stages(source, enough, reorders=True)
    with pytest.raises(CompileError, match="expected what fits into .* free memory, found"):
        check_stages(source, enough - 1, reorders=True)
    check_stages(source, enough - 1, reorders=False)


def test_on_disk_only_what_is_worked_with_counts(tmp_path: Path) -> None:
    source = load(tmp_path, recover={"method": "closed-form"}, dtype="bfloat16")
    whole, here = (bound(source, 1 << 20, reorders=True, on_disk=on_disk) for on_disk in (False, True))
    assert whole.on_disk == 0
    assert here.on_disk == source.parameter_bytes + (len(source.models) + 1) * source.paged_bytes
    assert whole.stages.keys() == here.stages.keys()
    assert all(whole.stages[stage] - here.stages[stage] >= source.parameter_bytes for stage in whole.stages)
    assert here.calibration_bytes == source.paged_bytes // 8 < whole.calibration_bytes == source.paged_bytes
    # With more memory, sums of more weights grow at a time.
    assert bound(source, 1 << 40, reorders=True, on_disk=True).calibration_bytes == source.paged_bytes


def test_a_model_goes_to_disk_where_it_does_not_fit_and_nothing_is_trained(tmp_path: Path) -> None:
    frozen = sources.load(task_file.from_dict(tiny.writer(tmp_path, recover={"method": "none"})))
    most = bound(frozen, None, reorders=True, on_disk=False).most[1]
    assert choose_scratch(frozen, tmp_path, most, reorders=True).folder is None
    assert choose_scratch(frozen, tmp_path, most - 1, reorders=True).folder == tmp_path
    assert choose_scratch(frozen, None, most - 1, reorders=True).folder is None
    assert choose_scratch(frozen, tmp_path, None, reorders=True).folder is None
    trained = load(tmp_path)
    assert choose_scratch(trained, tmp_path, 1, reorders=True).folder is None


def test_feedback_of_rounding_counts_its_hessian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightpager.compiler.estimates.stages._HESSIAN_BYTES", 1000)

    def needed(dtype: str) -> int:
        content = tiny.writer(tmp_path, dtype=dtype, recover={"method": "closed-form"})
        return bound(sources.load(task_file.from_dict(content)), None, reorders=False, on_disk=True).stages["recover"]

    assert needed("int4") >= 1000 * 96**2 > needed("int8")  # the widest layer has 96 inputs


def wide(folder: Path, **changes: Any) -> dict[str, Any]:
    """A decoder large enough for its weights to be seen beside what a process holds anyway."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256, intermediate_size=768, num_hidden_layers=16, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=20000, tie_word_embeddings=True, bos_token_id=2, eos_token_id=3, dtype=torch.bfloat16,
    )  # fmt: skip
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder / "wide")
    tiny.tokenizer().save_pretrained(folder / "wide")
    content = tiny.writer(folder, model=str(folder / "wide"), block="16x32", calibration=CALIBRATION, **changes)
    return {key: value for key, value in content.items() if key != "page"}


CALIBRATION = {"items": 4, "max_length": 32, "batch": 2}


@pytest.mark.slow
@pytest.mark.skipif(resident_memory() is None, reason="the system doesn't tell what a process holds")
def test_the_bound_that_is_told_holds_and_is_no_more_than_half_too_high(tmp_path: Path) -> None:
    content = wide(tmp_path, recover={"method": "closed-form"}, reorder=False, compare="dense")
    report = read_report(wp.compile(content, out=tmp_path / "bundle", cache=False))
    assert report.peak_memory.keys() - {"train"} == report.memory_bound.keys()
    for stage, most in report.memory_bound.items():
        assert report.peak_memory[stage] <= most
    assert max(report.memory_bound.values()) <= 1.5 * max(report.peak_memory.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="training then takes the device's memory")
def test_a_compile_says_so_before_it_trains(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"training\.batch: expected what fits"):
        prepare(task_file.from_dict(tiny.assistant(tmp_path, training={"batch": 2**30})))


def test_the_estimate_grows_with_what_it_depends_on(tmp_path: Path) -> None:
    source = load(tmp_path)
    assert activation_bytes(source, "animal", 8) == 8 * activation_bytes(source, "animal", 1)
    weights = {id(t): t.numel() for task in source.models for t in source.models[task].parameters()}
    assert training_bytes(source, 8, copies=0) > 12 * sum(weights.values())


@pytest.mark.parametrize(
    ("low", "short", "hidden", "neuron"), [(False, 128, 54, 16), (True, 128, 54, 8), (True, 15, 43, 8)]
)
def test_activations_depend_on_precision_and_attention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, low: bool, short: int, hidden: int, neuron: int
) -> None:
    monkeypatch.setattr("weightpager.compiler.estimates.activations.multiplies_in_bfloat16", lambda _: low)
    monkeypatch.setattr("weightpager.compiler.estimates.activations.SHORT", short)
    source = load(tmp_path)
    config = source.models["animal"].config
    # 3 layers, 16 tokens, hidden size 64, 100 neurons, 4 heads, 2 classes
    kept = hidden * 64 + neuron * 100
    assert config._attn_implementation == "sdpa"
    assert activation_bytes(source, "animal", 1) == 16 * 3 * kept + 2 * 12
    config._attn_implementation = "eager"
    assert activation_bytes(source, "animal", 1) == 16 * 3 * (kept + 5 * 4 * 16) + 2 * 12


def test_a_model_that_does_not_state_its_neurons_has_four_to_a_hidden_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightpager.compiler.estimates.activations.multiplies_in_bfloat16", lambda _: False)
    source = load(tmp_path)
    vars(source.models["animal"].config)["intermediate_size"] = None  # as GPT-Neo's does
    assert activation_bytes(source, "animal", 1) == 16 * 3 * (54 * 64 + 16 * 4 * 64) + 2 * 12


def test_prompts_that_are_answered_count_their_caches(tmp_path: Path) -> None:
    def stages(most: int) -> Mapping[str, int]:
        content = tiny.clerk(tmp_path, compare="dense")
        content["tasks"] = {name: {**task, "max_new_tokens": most} for name, task in content["tasks"].items()}
        return bound(sources.load(task_file.from_dict(content)), None, reorders=False, on_disk=True).stages

    few, more, most = (stages(tokens) for tokens in (4, 14, 500))
    cached = 2 * 2 * 2 * 16 * 4  # a token's keys and values: 2 layers, 2 heads of 16 numbers, in float32
    for stage in few:
        measured = stage in ("measure dense", "controls", "measure sparse")
        assert more[stage] - few[stage] == measured * 32 * 10 * cached
        assert most[stage] - few[stage] == measured * (2048 - 32 * 20) * cached


def test_a_model_without_attention_keeps_no_keys_and_values(tmp_path: Path) -> None:
    source = sources.load(task_file.from_dict(tiny.clerk(tmp_path)))
    mamba = MambaForCausalLM(MambaConfig(vocab_size=16, hidden_size=32, num_hidden_layers=2, state_size=4))
    assert key_value_bytes(source, "after", 32) > 0
    assert key_value_bytes(replace(source, models=dict.fromkeys(source.models, mamba)), "after", 32) == 0


def test_windows_of_a_language_model_are_measured_few_at_a_time(tmp_path: Path) -> None:
    found = []
    for batch in (1000, 2048 // 16, 1):
        calibration = {"max_length": 64, "batch": batch}  # its tasks' windows have 16 tokens
        source = sources.load(task_file.from_dict(tiny.writer(tmp_path, calibration=calibration)))
        found.append(bound(source, None, reorders=False, on_disk=True).stages["calibrate"])
    assert found[0] == found[1] > found[2]


@pytest.mark.slow
def test_tasks_that_are_added_need_no_room_for_training_the_model(tmp_path: Path) -> None:
    for recover in ("none", "finetune"):
        source = load(tmp_path, recover={"method": recover, "batch": 1}, training={"batch": 1})
        paged = sum(4 * info.grid.out_features * info.grid.in_features for info in source.paged)
        whole = training_bytes(source, 1, copies=1) - training_bytes(source, 1, copies=0)
        activations = max(activation_bytes(source, task, 1) for task in source.models)
        copies = 1 if recover == "none" else 7
        check_training(source, whole + copies * paged + activations, adds=True)
        with pytest.raises(CompileError, match="batch: expected what fits"):
            check_training(source, whole + copies * paged + activations - 1, adds=True)
        with pytest.raises(CompileError, match=r"training\.batch: expected what fits"):
            check_training(source, 3 * whole - 1)


@pytest.mark.slow
def test_recovery_counts_the_copies_that_it_makes(tmp_path: Path) -> None:
    def needed(compare: str = "none", **recover: Any) -> int:
        return recover_bytes(load(tmp_path, compare=compare, recover={"method": "finetune", "batch": 1, **recover}))

    source = load(tmp_path)
    paged = sum(4 * info.grid.out_features * info.grid.in_features for info in source.paged)
    whole = sum(
        4 * size for size in {id(t): t.numel() for m in source.models.values() for t in m.parameters()}.values()
    )
    activations = max(activation_bytes(source, task, 1) for task in source.models)
    assert needed(patience=0) == 4 * whole + paged + activations
    assert needed() - needed(patience=0) == whole
    assert needed(private_blocks=0.1) == max(needed(), whole + 7 * paged + activations)
    assert needed(low_rank=2) == needed(private_blocks=0.1)
    # The sparse model waits while the dense one is trained as long.
    assert needed("dense", patience=0) == 5 * whole + paged + activations
