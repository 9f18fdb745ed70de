"""What a compile takes in memory at most is told before it starts, and holds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel, ViTConfig, ViTModel

import tiny
import tiny_llava
import tiny_next
import tiny_tiles
import weightpager as wp
from mixtures import model_of, source_of
from weightpager.bundle import BundleWriter
from weightpager.bundle.report.compile_report import CompileReport, read_report
from weightpager.compiler import task_file
from weightpager.compiler.graph.export import write_graphs
from weightpager.compiler.memory_estimate import bound, check_memory, choose_scratch
from weightpager.compiler.model import dense_model as sources
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.packing.write import image_shape
from weightpager.compiler.prepare import prepare
from weightpager.errors import CompileError
from weightpager.machine.memory import resident_memory

counts_memory = pytest.mark.skipif(resident_memory() is None, reason="the system doesn't tell what a process holds")
on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="training then takes the device's memory")


def load(folder: Path, make: Callable[..., dict[str, Any]] = tiny.assistant, **changes: Any) -> DenseModel:
    return sources.load(task_file.from_dict(make(folder, **changes)))


def check(source: DenseModel, available: int | None) -> None:
    check_memory(source, available, reorders=source.task_file.reorder)


FINETUNE = {"method": "finetune", "steps": 2, "batch": 8}
ALONE = FINETUNE | {"private_blocks": 0.1, "private_steps": 2, "low_rank": 2}
METHODS: dict[str, dict[str, Any]] = {
    "none": {"recover": "none", "compare": "all", "accuracy_loss": 50.0, "reorder": True},
    "closed form": {"recover": "closed-form", "compare": "dense", "reorder": False},
    "finetune, validated": {"recover": FINETUNE | {"patience": 1}, "compare": "dense", "reorder": False},
    "own values from closed form": {"recover": ALONE | {"start": "closed-form"}, "compare": "all", "reorder": False},
}
"""Whatever recovers it, a model is reordered alike, which takes seconds: once for each kind."""


def decoder() -> PreTrainedModel:
    config = LlamaConfig(
        hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=8000, tie_word_embeddings=True, bos_token_id=2, eos_token_id=3, dtype=torch.bfloat16,
    )  # fmt: skip
    return LlamaForCausalLM(config).bfloat16()


def encoder() -> PreTrainedModel:
    config = BertConfig(
        hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4, vocab_size=8000
    )
    return BertModel(config)


def viewer() -> PreTrainedModel:
    config = ViTConfig(
        hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4, image_size=16, patch_size=8
    )
    return ViTModel(config, add_pooling_layer=False)


def watcher() -> PreTrainedModel:
    config = tiny_llava.config()
    config.text_config, config.vision_config.hidden_size = decoder().config, 256
    config.vision_config.intermediate_size = 1024
    config.tie_word_embeddings = True
    return tiny_llava.model(config)


def tiler(of: Any, family: str) -> PreTrainedModel:
    """A model whose pictures are tiles, behind a tower as wide as its words."""
    config = of.config(family)
    config.text_config, config.vision_config.hidden_size = decoder().config, 256
    config.vision_config.intermediate_size = 1024
    config.tie_word_embeddings = True
    return of.model(config)


KINDS: dict[str, tuple[Callable[..., dict[str, Any]], Callable[[], PreTrainedModel], tuple[str, ...]]] = {
    "text-classification": (tiny.assistant, encoder, ("animal", "weather")),
    "token-classification": (tiny.assistant, encoder, ("colour",)),
    "image-classification": (tiny.camera, viewer, ("colour", "warm")),
    "language-modeling": (tiny.writer, decoder, ("animals", "numbers")),
    "text-generation": (tiny.clerk, decoder, ("after", "twice")),
    "pictures": (tiny_llava.watcher, watcher, ("animal", "number")),
    "tiles": (tiny_tiles.watcher, partial(tiler, tiny_tiles, "idefics3"), ("animal", "number")),
    "packed tiles": (tiny_next.watcher, partial(tiler, tiny_next, "next_clip"), ("animal", "number")),
}

_ALL_STAGES = "own values from closed form"
_MOST_TELLING = {
    *(("text-classification", method) for method in METHODS),
    ("image-classification", "closed form"),  # few tokens, whose room can't hide what least squares take
    ("pictures", _ALL_STAGES),
}
CASES = [
    pytest.param(kind, method, marks=() if (kind, method) in _MOST_TELLING else pytest.mark.long)
    for kind in KINDS
    for method in METHODS
]
"""What isn't the most telling is tried where the longest tests are."""


def compiled(folder: Path, kind: str, **changes: Any) -> CompileReport:
    """A compile of a model that is large enough to be seen beside what a process holds anyway."""
    make, model, tasks = KINDS[kind]
    torch.manual_seed(0)
    content = make(folder, **changes)
    model().save_pretrained(content["model"])  # in place of the tiny one, whose tokenizer it has
    content |= {"block": "16x32", "training": {"steps": 2, "batch": 8}, "dtype": "int4"}
    lengths = {"image-classification": {}, "pictures": {"max_length": 24}, "packed tiles": {"max_length": 60}}
    length: dict[str, int] = lengths.get(kind, {"max_length": 200 if kind == "tiles" else 16})
    content["calibration"] = {"items": 8, "batch": 4} | length
    content["tasks"] = {
        name: task | ({"validation": task["eval"]} if "validated" in str(folder) else {})
        for name, task in content["tasks"].items()
        if name in tasks
    }
    without = {"page", "alignment"} if "accuracy_loss" in changes else {"page"}
    content = {key: value for key, value in content.items() if key not in without}
    if "accuracy_loss" not in changes:
        _trace(content, folder / "graphs")
    return read_report(wp.compile(content, out=folder / "bundle", cache=False))


def _trace(content: dict[str, Any], folder: Path) -> None:
    """What tracing leaves in the heap doesn't grow with the model; one compile of each kind has it within its bound."""
    source = sources.load(task_file.from_dict(content))
    kinds = [task.kind for task in source.task_file.tasks.values()]
    assert write_graphs(BundleWriter(folder), source.config, kinds, image_shape(source)) == {}


@pytest.fixture(scope="module")
def _imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a compile imports late, and its libraries' buffers, are there and can't hide what the bound leaves out.

    Buffers grow with the matrices that they serve, so that a larger model comes last.
    """
    for make in (tiny.assistant, tiny.clerk, tiny_llava.watcher):
        method = METHODS[_ALL_STAGES] | {"reorder": True}
        content = make(tmp_path_factory.mktemp("first"), dtype="int4", **method)
        wp.compile(content, out=tmp_path_factory.mktemp("out") / "a.bundle", cache=False)
    alone = METHODS[_ALL_STAGES] | {"compare": "none"}
    compiled(tmp_path_factory.mktemp("large"), "text-classification", **alone)


@pytest.mark.slow
@counts_memory
@on_cpu
@pytest.mark.usefixtures("_imported")
@pytest.mark.parametrize(("kind", "method"), CASES)
def test_no_stage_takes_more_than_its_bound(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, kind: str, method: str
) -> None:
    # Two graphs are traced and compared of a model that reads pictures, and the heap keeps what that took.
    later = 160 if kind == "pictures" or kind.endswith("tiles") else 64
    monkeypatch.setattr("weightpager.compiler.memory_estimate._LATER", later << 20)
    report = compiled(tmp_path_factory.mktemp(method), kind, **METHODS[method])
    excess = {stage: report.peak_memory[stage] - most for stage, most in report.memory_bound.items()}
    assert max(excess.values()) <= 0, excess
    assert set(report.peak_memory) - set(report.memory_bound) <= {"train", "controls"}
    # Beside what the process held anyway, the highest bound is no more than a few times the highest peak. Texts of the
    # data that have tiles are far from as full of them as they may be: a narrow picture's padding takes no places.
    times = {"tiles": 12, "packed tiles": 24}.get(kind, 4)
    before = min(report.peak_memory.values())
    assert max(report.memory_bound.values()) - before <= times * (max(report.peak_memory.values()) - before) + (
        later << 20
    )


def test_controls_have_room_to_recover_one_shared_mask(tmp_path: Path) -> None:
    source = load(tmp_path, recover="closed-form", compare="dense")
    stages = bound(source, None, reorders=False, on_disk=False).stages
    assert stages["controls"] >= stages["recover"]


@pytest.mark.slow
def test_a_tiny_model_fits_and_a_huge_batch_does_not(tmp_path: Path) -> None:
    check(load(tmp_path), 1 << 30)
    check(load(tmp_path), None)
    for section in ("training", "calibration", "recover"):
        method = {"method": "finetune"} if section == "recover" else {}
        length = {"max_length": 16} if section == "calibration" else {}
        huge = load(tmp_path, **{section: {"batch": 2**30, **method, **length}})
        with pytest.raises(CompileError, match=rf"memory: expected .* 1024 MiB .*; take a smaller {section}\.batch or"):
            check(huge, 1 << 30)


@on_cpu
@pytest.mark.parametrize(
    ("make", "section", "otherwise"),
    [
        (tiny.assistant, "training", "take a smaller model, or tasks that bring a head"),
        (tiny.assistant, "recover", "set recover: none"),
        (tiny.camera, "training", "take a smaller model, or tasks that bring a head"),
    ],
)
def test_a_smaller_batch_is_advised_where_it_is_enough(
    tmp_path: Path, make: Callable[..., dict[str, Any]], section: str, otherwise: str
) -> None:
    specs: dict[str, dict[str, Any]] = {key: {"batch": 1} for key in ("training", "recover")}
    specs["recover"]["method"] = "finetune" if section == "recover" else "none"
    stage = {"training": "train", "recover": "recover"}[section]
    one = load(tmp_path, make, **specs)
    specs[section]["batch"] = 2**20
    source = load(tmp_path, make, **specs)
    alone = bound(one, None, reorders=False, on_disk=False).stages[stage]

    def advice(available: int) -> str:
        with pytest.raises(CompileError, match=rf"memory: expected .* the stage '{stage}', .* MiB; ") as caught:
            check_memory(source, available, reorders=False)
        return str(caught.value).rpartition("; ")[2]

    earlier = max(
        size for name, size in bound(one, None, reorders=False, on_disk=False).stages.items() if name != stage
    )
    assert advice(max(alone, earlier)) == f"take a smaller {section}.batch" + " or max_length" * (
        make is tiny.assistant
    )
    if alone > earlier:
        assert advice(alone - 1) == otherwise


@on_cpu
def test_a_compile_says_so_before_it_trains(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"the stage 'train', .* take a smaller training\.batch or max_length"):
        prepare(task_file.from_dict(tiny.assistant(tmp_path, training={"batch": 2**30})))


@on_cpu
def test_what_fine_tuning_takes_decides_what_is_said_at_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    changes = {"recover": {"method": "finetune", "batch": 2048, "steps": 2}}
    with caplog.at_level("INFO"):
        prepare(task_file.from_dict(tiny.assistant(tmp_path, **changes)))
    assert "(recover)" in next(line for line in caplog.text.splitlines() if "memory: at most about" in line)


def test_reordering_counts_what_all_tasks_hold_at_once(tmp_path: Path) -> None:
    source = load(tmp_path)
    tasks, sums = len(source.task_file.tasks), source.paged_bytes
    stages = [bound(source, None, reorders=reorders, on_disk=False).stages for reorders in (True, False)]
    assert stages[0]["calibrate"] - stages[1]["calibrate"] == sums * (tasks - 1)
    assert stages[0]["reorder"] > source.parameter_bytes + tasks * sums
    assert "reorder" not in stages[1]


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
    frozen = load(tmp_path, tiny.writer, recover={"method": "none"})
    most = bound(frozen, None, reorders=True, on_disk=False).most[1]
    assert choose_scratch(frozen, tmp_path, most, reorders=True).folder is None
    assert choose_scratch(frozen, tmp_path, most - 1, reorders=True).folder == tmp_path
    assert choose_scratch(frozen, None, most - 1, reorders=True).folder is None
    assert choose_scratch(frozen, tmp_path, None, reorders=True).folder is None
    trained = load(tmp_path)
    assert choose_scratch(trained, tmp_path, 1, reorders=True).folder is None


def test_windows_of_a_language_model_are_measured_few_at_a_time(tmp_path: Path) -> None:
    found = []
    for batch in (1000, 2048 // 16, 1):
        source = load(tmp_path, tiny.writer, calibration={"max_length": 64, "batch": batch})  # windows of 16 tokens
        found.append(bound(source, None, reorders=False, on_disk=True).stages["calibrate"])
    assert found[0] == found[1] > found[2]


def test_a_token_passes_few_of_the_experts(tmp_path: Path) -> None:
    few, all_of_them = (
        bound(
            source_of(model_of("Qwen2Moe", num_experts_per_tok=chosen), tmp_path / str(chosen)),
            None,
            reorders=False,
            on_disk=True,
        ).stages["calibrate"]
        for chosen in (1, 4)
    )
    assert few < all_of_them


def test_tasks_that_are_added_need_no_room_for_training_the_model(tmp_path: Path) -> None:
    source = load(tmp_path, recover={"method": "none"}, training={"batch": 1})
    adding, whole = (
        bound(source, None, reorders=False, on_disk=False, adds=adds).stages["train"] for adds in (True, False)
    )
    assert whole - adding >= 3 * source.paged_bytes
