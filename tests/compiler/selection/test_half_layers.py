"""Half-layers: what they are, what a model loses without them, and which of them tasks keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import tiny
import weightpager as wp
from families import ALL_DECODERS, ALL_ENCODERS, ALL_IMAGES, ENCODERS, MIXTURES, PIXELS, config_of
from mixtures import TOKENS, source_of
from weightpager.answers.score import Score
from weightpager.blocks import BlockGrid, BlockShape
from weightpager.bundle import TaskKind
from weightpager.bundle.report.compile_report import read_report
from weightpager.compiler import keep as keeping
from weightpager.compiler import prepare as preparing
from weightpager.compiler.data import Batch
from weightpager.compiler.graph.builder import CallForm
from weightpager.compiler.graph.check import give_values, made_up
from weightpager.compiler.graph.export import empty_module_of
from weightpager.compiler.model.dense_model import DenseModel, PagedWeightInfo
from weightpager.compiler.model.half_layers import HalfLayer, dropped_halves, half_layers, units_of
from weightpager.compiler.selection.block_choice import choose_blocks, of_whole
from weightpager.compiler.selection.half_layers import HALVES, Trials, half_layer_saliency, half_saliency
from weightpager.compiler.selection.prepared import Prepared
from weightpager.compiler.training.loss import loss, masked_logits
from weightpager.errors import CompileError, ConfigError

BATCHES = [Batch({"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}, TOKENS)]


def infos(*names: str) -> tuple[PagedWeightInfo, ...]:
    return tuple(PagedWeightInfo(name, 0, BlockGrid(16, 32, BlockShape(8, 8))) for name in names)


def source(folder: Path, **settings: Any) -> DenseModel:
    """Of tasks over a model whose linear layers have biases, in four layers."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_embd=32, n_layer=4, n_head=2, n_positions=64)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    return source_of(model.requires_grad_(False), folder, **{"units": "half-layer", "alignment": 0.0, **settings})


def test_half_layers_are_named_by_the_modules_that_hold_them() -> None:
    bert = infos(
        *(
            f"base_model.encoder.layer.{number}.{name}"
            for number in range(2)
            for name in ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense")
        ),
        "base_model.pooler.dense",
    )
    found = half_layers(bert)
    assert [half.modules for half in found[2:]] == [
        ("base_model.encoder.layer.1.attention",),
        ("base_model.encoder.layer.1.intermediate", "base_model.encoder.layer.1.output"),
    ]
    assert [half.blocks for half in found] == [16] * 4
    assert [half.modules for half in half_layers(bert, whole=True)] == [
        ("base_model.encoder.layer.0",),
        ("base_model.encoder.layer.1",),
    ]
    assert half_layers(infos("base_model.stages.0.blocks.1.conv", "base_model.attention.0.query")) == ()


def test_losses_without_half_layers_are_those_under_masks(tmp_path: Path) -> None:
    of, rng = source(tmp_path), np.random.default_rng(0)
    units, trials = units_of(of), Trials(of, "task-0", BATCHES)
    for _ in range(6):
        base = rng.random(8) < 0.3
        trials.start([unit for unit, gone in zip(units, base, strict=True) if gone])
        for _ in range(3):
            tried = base | (rng.random(8) < 0.2)
            found = trials.loss([unit for unit, gone in zip(units, tried, strict=True) if gone])
            masks = of_whole(Prepared(of, {}, {}, {}), units, np.repeat(~tried[:, None], 2, 1)).masks
            assert len(dropped_halves(of, masks.keep, 0)) == tried.sum()
            with torch.no_grad():
                logits = masked_logits(of, masks, "task-0", BATCHES[0])
                assert found == pytest.approx(float(loss(logits, TOKENS, "language-modeling")), rel=1e-5)
    assert all("forward" not in module.__dict__ for module in of.models["task-0"].modules())


_TWICE = {"num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2}
"""Each of its layers is called twice."""
FAMILIES: list[tuple[Mapping[str, Mapping[str, Any]], TaskKind]] = [
    ({**ALL_ENCODERS, "Albert": {**ENCODERS["Albert"], **_TWICE}}, "text-classification"),
    (ALL_IMAGES, "image-classification"),
    ({name: of for name, of in ALL_DECODERS.items() if name not in MIXTURES}, "language-modeling"),
]
QUICK = ("Albert", "DebertaV2", "Swin", "ModernBert")


@pytest.mark.parametrize(
    ("family", "settings", "kind"),
    [
        pytest.param(family, settings, kind, id=family, marks=() if family in QUICK else pytest.mark.slow)
        for families, kind in FAMILIES
        for family, settings in families.items()
    ],
)
def test_losses_of_all_families_are_those_of_a_model_that_is_computed_whole(
    tmp_path: Path, family: str, settings: Mapping[str, Any], kind: TaskKind
) -> None:
    module = empty_module_of(config_of(family, settings), kind, 2)
    give_values(module)
    image = PIXELS if kind == "image-classification" else None
    inputs = {name: torch.from_numpy(each) for name, each in made_up(CallForm.of(kind, image), module, 3, 9).items()}
    labels = inputs["input_ids"] if kind == "language-modeling" else torch.tensor([0, 1, 1])
    data = {
        "text-classification": lambda: tiny.classification(tmp_path, "some", {"cat": ["cat"], "dog": ["dog"]}),
        "image-classification": lambda: tiny.pictures(tmp_path, "some", ["red", "green"]),
        "language-modeling": lambda: None,
    }
    of = source_of(module, tmp_path, 1, data[kind](), units="half-layer")
    units, rng, batches = units_of(of), np.random.default_rng(0), [Batch(inputs, labels)]
    trials = Trials(of, "task-0", batches)
    for _ in range(3):
        base = [unit for unit in units if rng.random() < 0.2]
        assert trials.start(base) == trials.loss(base)
        for unit in [each for each in units if each not in base]:
            wanted = Trials(of, "task-0", batches).start([*base, unit])
            assert trials.loss([*base, unit]) == pytest.approx(wanted, rel=1e-6)


def test_saliency_is_the_loss_that_is_added(tmp_path: Path) -> None:
    of = source(tmp_path)
    found, trials = half_layer_saliency(of, "task-0", BATCHES), Trials(of, "task-0", BATCHES)
    dense = trials.start(())
    gains = [max(0.0, trials.loss([unit]) - dense) for unit in units_of(of)]
    np.testing.assert_allclose(half_saliency(found, units_of(of)), gains, rtol=1e-6)


@pytest.mark.parametrize("alignment", [0.0, 1.0, float("inf")])
def test_masks_have_all_of_a_half_layer_or_nothing_and_no_more_than_they_may(tmp_path: Path, alignment: float) -> None:
    of, rng = source(tmp_path, alignment=alignment, sparsity=0.4), np.random.default_rng(0)
    for _ in range(5):
        saliency = {
            task: {info.name: np.full(info.grid.count, rng.random()) for info in of.paged} for task in of.models
        }
        masks = choose_blocks(Prepared(of, {}, {}, saliency)).masks
        kept = sum(mask.sum(0) for mask in masks.keep.values()) / sum(len(mask) for mask in masks.keep.values())
        assert ((kept <= 0.6 + 1e-9) & (kept > 0.4)).all()
        for unit in units_of(of):
            of_unit = np.concatenate([masks.keep[name] for name in unit.weights])
            assert (of_unit.all(0) == of_unit.any(0)).all()
        if np.isinf(alignment):
            assert all((mask[:, 0] == mask[:, 1]).all() for mask in masks.keep.values())


@pytest.mark.parametrize("alignment", [0.0, float("inf")])
def test_blocks_are_dropped_within_the_half_layers_that_are_left(tmp_path: Path, alignment: float) -> None:
    units = {"unit": "half-layer", "share": 0.3}
    of, rng = source(tmp_path, alignment=alignment, sparsity=0.6, units=units), np.random.default_rng(0)
    saliency: dict[str, dict[str, Any]] = {
        task: {info.name: rng.random(info.grid.count) for info in of.paged} | {HALVES: rng.random(8)}
        for task in of.models
    }
    masks = choose_blocks(Prepared(of, {}, {}, saliency)).masks
    whole = sum(len(mask) for mask in masks.keep.values())
    for number in range(2):
        gone = sum(unit.blocks for unit in dropped_halves(of, masks.keep, number))
        assert 0.2 * whole < gone < 0.35 * whole  # to the nearest
        assert sum(int(mask[:, number].sum()) for mask in masks.keep.values()) == round(0.4 * whole)
    if np.isinf(alignment):
        assert all((mask[:, 0] == mask[:, 1]).all() for mask in masks.keep.values())


@pytest.mark.parametrize("grows", [False, True])
def test_units_that_graphs_cannot_do_without_are_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assistant_bundle: Path, grows: bool
) -> None:
    def parts(of: DenseModel) -> list[HalfLayer]:
        return [replace(unit, weights=unit.weights[:1]) for unit in units_of(of)]

    content = tiny.assistant(tmp_path, units="half-layer")
    if grows:
        content["tasks"] = {"pet": content["tasks"]["animal"]}
    told: list[str] = []
    monkeypatch.setattr(preparing, "units_of", parts)
    with pytest.raises(CompileError, match="units: expected half-layers that are added to others, found their zeros"):
        wp.compile(
            content,
            tmp_path / "a.bundle",
            base=assistant_bundle if grows else None,
            cache=False,
            progress=lambda stage, *_: told.append(stage),
        )
    assert "train the dense model" not in told


def test_models_without_such_layers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="units: expected block, found half-layer"):
        from mixtures import model_of
        from weightpager.compiler.recovery.recover import check_method

        check_method(source_of(model_of("Mixtral"), tmp_path, units="half-layer"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"units": "neuron"}, "units.unit: expected 'block', 'half-layer' or 'layer'"),
        ({"units": "layer", "recover": "closed-form"}, "recover: expected none, or finetune alone"),
        ({"units": {"unit": "block", "share": 0.1}}, "units.share: expected a unit of half-layers or layers"),
        ({"keep": 0.9}, "keep: expected no sparsity beside it"),
        ({"keep": 1.5}, "keep: expected at most 1"),
    ],
)
def test_task_files_that_ask_for_what_cannot_be_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        wp.compile(tiny.writer(tmp_path, **changes), tmp_path / "a.bundle", cache=False)


def kept(folder: Path, **changes: Any) -> dict[str, Any]:
    content = tiny.writer(folder, **{"compare": "none", "keep": 0.9, "alignment": 0.5, **changes})
    del content["sparsity"]
    return content


@pytest.mark.parametrize("dtype", ["bfloat16", "int4"])
@pytest.mark.parametrize("units", ["half-layer", "block"])
def test_every_task_keeps_its_share_and_the_report_says_how(tmp_path: Path, units: str, dtype: str) -> None:
    bundle = wp.compile(kept(tmp_path, units=units, dtype=dtype), tmp_path / "a.bundle", cache=False)
    report = read_report(bundle).keep
    assert report is not None
    assert report.share == 0.9
    assert all(share >= 0.88 for share in report.kept.values())  # activations are rounded, too
    assert {step.task for step in report.path} == set(bundle.tasks)
    for task in bundle.manifest.tasks:
        taken = [step for step in report.path if step.task == task.name and step.taken]
        if units == "half-layer":
            assert sorted(task.dropped) == sorted(name for step in taken for name in step.dropped)
        assert bool(task.dropped) == (units == "half-layer")
        assert task.sparsity > 0


@pytest.mark.parametrize("units", ["half-layer", "block"])
def test_all_rows_tell_whether_what_few_led_to_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, units: str
) -> None:
    share = keeping._Metric.share
    measured: set[str] = set()

    def hopeful(self: Any, task: str, model: Any, *, whole: bool = False) -> tuple[float, float]:
        _, value = share(self, task, model, whole=whole)
        disappoints = whole and task not in measured  # what a tiny model really keeps is chance
        measured.update([task] if whole else [])
        return (0.5 if disappoints else 1.0), value

    monkeypatch.setattr(keeping, "FEW", 2)
    monkeypatch.setattr(keeping._Metric, "share", hopeful)
    report = read_report(wp.compile(kept(tmp_path, units=units), tmp_path / "a.bundle", cache=False)).keep
    assert report is not None
    assert all(share >= 0.88 for share in report.kept.values())
    assert not all(step.taken for step in report.path)


@pytest.mark.parametrize("units", ["layer", "block"])
def test_tasks_of_one_mask_keep_their_shares_with_the_same(tmp_path: Path, units: str) -> None:
    content = kept(tmp_path, units=units, alignment="inf", keep=0.6)
    bundle = wp.compile(content, tmp_path / "a.bundle", cache=False)
    one, other = bundle.manifest.tasks
    assert 0 < one.sparsity == other.sparsity
    assert one.dropped == other.dropped
    assert bool(one.dropped) == (units == "layer")
    assert bundle.kept_locations(one.name).tolist() == bundle.kept_locations(other.name).tolist()


@pytest.mark.parametrize(("metric", "value"), [("accuracy", 0.0), ("perplexity", np.inf), ("accuracy", np.nan)])
def test_a_metric_that_has_no_share_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: Any, value: float
) -> None:
    monkeypatch.setattr(keeping, "validation", lambda data, _most=0: data)
    monkeypatch.setattr(keeping, "torch_score", lambda *_: Score(metric, value, 1))
    data: Any = {"task-0": None}
    with pytest.raises(CompileError, match=rf"keep: .* tasks.task-0 with {metric} {value:g}; state a sparsity"):
        keeping._Metric.of(Prepared(source(tmp_path), data, {}, {}))


def test_a_budget_beside_it_that_cannot_hold_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"fit: expected at least .*, which keeping 0.9 of the dense metric takes"):
        wp.compile(kept(tmp_path, units="layer", fit="1KiB"), tmp_path / "a.bundle", cache=False)


@pytest.mark.parametrize("units", ["half-layer", "block"])
def test_a_search_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, units: str) -> None:
    content, asked = kept(tmp_path, units=units), 0
    share, best, known = keeping._Metric.share, keeping._Greedy._best, []

    def ranks(self: Any, trials: Any, gains: dict[int, float], *of: Any) -> int:
        known.append(dict(gains))
        return best(self, trials, gains, *of)

    def stops(self: Any, task: str, model: Any, **how: Any) -> tuple[float, float]:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise KeyboardInterrupt
        return share(self, task, model, **how)

    monkeypatch.setattr(keeping._Metric, "share", stops)
    monkeypatch.setattr(keeping._Greedy, "_best", ranks)
    with pytest.raises(KeyboardInterrupt):
        wp.compile(content, tmp_path / "a.bundle", cache=False)
    before, asked, at = asked, 10, len(known)
    one = wp.compile(content, tmp_path / "a.bundle", cache=False)
    assert units == "block" or known[at] == known[at - 1]
    again, asked = asked - 10, 10
    other = wp.compile(content, tmp_path / "b.bundle", cache=False)
    assert again == asked - 10 - (before - 1)
    assert [task.dropped for task in one.manifest.tasks] == [task.dropped for task in other.manifest.tasks]
    assert read_report(one).keep == read_report(other).keep
