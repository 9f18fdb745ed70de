"""Fine-tuning under masks, private blocks, and the journal that a killed compile goes on from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
import weightpager as wp
from sparse import copied, masks_of
from weightpager.backends.torch.export import export_task
from weightpager.backends.verify import verify
from weightpager.bundle.report.compile_report import read_report
from weightpager.bundle.report.page_statistics import overlap
from weightpager.compiler import data as task_data
from weightpager.compiler.data import Batch, TaskData
from weightpager.compiler.model import dense_model as sources
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.model.own_weights import SHARED
from weightpager.compiler.model.task_weights import TaskWeights
from weightpager.compiler.recovery import private_blocks
from weightpager.compiler.recovery.finetune import Lesson, finetune
from weightpager.compiler.recovery.private_blocks import choose_private_blocks, train_private
from weightpager.compiler.recovery.recover import recover
from weightpager.compiler.recovery.rounding import stored
from weightpager.compiler.recovery.training_loop import ParameterGroup, Training
from weightpager.compiler.resume.journal import CompileRun, Journal, journal_folder
from weightpager.compiler.task_file.file import from_dict
from weightpager.compiler.task_file.sections import RecoverSpec
from weightpager.compiler.training import device
from weightpager.compiler.training.early_stopping import CHECKS, Validation, check_steps, validation_of
from weightpager.compiler.training.loss import loss
from weightpager.compiler.training.masks import Masks, block_sums, drop
from weightpager.errors import CompileError, ConfigError, WeightpagerError
from weightpager.page_dtype import ENCODINGS

QUIET = Journal.none()


def nothing(_done: int, _total: int) -> None: ...


def load(folder: Path, **changes: Any) -> tuple[DenseModel, dict[str, TaskData]]:
    source = sources.load(from_dict(tiny.assistant(folder, **changes)))
    file = source.task_file
    return source, {
        name: task_data.load(name, spec, source.tokenizer, source.classes(name), file.max_length_of(name))
        for name, spec in file.tasks.items()
    }


def test_dropped_blocks_are_zero_and_sums_are_by_block(tmp_path: Path) -> None:
    source, _ = load(tmp_path)
    for info in source.paged:
        weight = source.linear("animal", info.name).weight.detach()
        keep = torch.rand(info.grid.rows, info.grid.cols) < 0.5
        cut = info.grid.cut(drop(weight, keep, info.grid).numpy())
        whole = info.grid.cut(weight.numpy())
        assert (cut[~keep.numpy()] == 0).all()
        assert (cut[keep.numpy()] == whole[keep.numpy()]).all()
        np.testing.assert_allclose(block_sums(weight, info.grid), whole.sum((2, 3)).reshape(-1), rtol=1e-4, atol=1e-5)


def test_a_perfect_pupil_has_no_divergence() -> None:
    logits, labels = torch.randn(2, 5, 3), torch.tensor([[0, 1, -100, 2, 0], [1, -100, -100, -100, 2]])
    assert loss(logits, labels, "token-classification", logits, 1.0) == pytest.approx(0, abs=1e-6)
    assert loss(logits, labels, "token-classification", torch.randn(2, 5, 3), 1.0) > 0.01
    by_hand = torch.nn.functional.kl_div(
        logits[labels >= 0].log_softmax(-1), logits.flip(-1)[labels >= 0].softmax(-1), reduction="batchmean"
    )
    found = loss(logits, labels, "token-classification", logits.flip(-1), 1.0)
    assert found == pytest.approx(float(by_hand), rel=1e-4)


def error(lesson: Lesson) -> float:
    with torch.no_grad():
        return sum(
            float(lesson.error(task, batch))
            for task, of_task in lesson.data.items()
            for batch in of_task.batches(of_task.train, 16)
        )


@pytest.mark.slow
def test_finetune_lowers_the_loss_and_leaves_the_teacher(tmp_path: Path) -> None:
    dense, data = load(tmp_path)
    before = {name: value.clone() for name, value in dense.parameters("animal").items()}
    spec = RecoverSpec(steps=60, batch=8, learning_rate=3e-3, distillation=0.3)
    sparse = copied(dense)
    lesson = Lesson(dense, sparse, masks_of(dense), data, spec)
    first = error(lesson)
    steps: list[int] = []
    finetune(lesson, QUIET, lambda done, _total: steps.append(done))
    assert error(lesson) < 0.8 * first
    assert steps == list(range(1, 61))
    assert all(torch.equal(value, before[name]) for name, value in dense.parameters("animal").items())
    weight = sparse.paged[0].name
    assert sparse.linear("animal", weight).weight is sparse.linear("colour", weight).weight


def recovered(
    dense: DenseModel, data: dict[str, TaskData], masks: Masks, journal: Journal, **changes: Any
) -> tuple[DenseModel, list[str]]:
    """The recovered model, and the stages that it took."""
    stages: dict[str, None] = {}
    spec = RecoverSpec(steps=3, batch=8, patience=0, **changes)
    source = replace(dense, task_file=dense.task_file.model_copy(update={"recover": spec}))
    found = recover(source, data, masks, journal, lambda stage, _done, _total: stages.setdefault(stage))
    return found.source, list(stages)


@pytest.mark.slow
def test_fine_tuning_can_set_out_from_the_closed_form(tmp_path: Path) -> None:
    dense, data = load(tmp_path)
    masks = masks_of(dense)
    refitted, _ = recovered(dense, data, masks, QUIET, method="closed-form")
    standing = {"method": "finetune", "learning_rate": 1e-9, "head_learning_rate": 1e-9}
    trained, stages = recovered(dense, data, masks, QUIET, start="closed-form", **standing)
    assert stages == ["refit", "fine-tune"]
    for info in dense.paged:
        ours, theirs, old = (s.linear("animal", info.name).weight for s in (trained, refitted, dense))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(ours, old, rtol=1e-3)


def test_a_seed_draws_what_values_are_refitted_on(tmp_path: Path) -> None:
    found = []
    for seed in (0, 0, 1):
        few = {"items": 4, "max_length": 16, "batch": 4, "seed": seed}
        dense, data = load(tmp_path, calibration=few)
        refitted, _ = recovered(dense, data, masks_of(dense), QUIET, method="closed-form")
        found.append(refitted.linear("animal", dense.paged[0].name).weight)
    first, again, other = found
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, rtol=1e-3)


@pytest.mark.slow
def test_a_resumed_fine_tuning_is_not_refitted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightpager.compiler.resume.journal.SECONDS", 0.0)
    dense, data = load(tmp_path)
    masks, how = masks_of(dense), {"method": "finetune", "start": "closed-form", "learning_rate": 3e-3}
    first, _ = recovered(dense, data, masks, Journal(tmp_path / "j", "one"), **how)
    again, stages = recovered(dense, data, masks, Journal(tmp_path / "j", "one"), **how)
    assert "refit" not in stages
    for info in dense.paged:
        assert torch.equal(*(s.linear("animal", info.name).weight for s in (first, again)))


@pytest.mark.slow
def test_a_fine_tuning_whose_entry_lacks_something_starts_again_from_the_refitted_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightpager.compiler.resume.journal.SECONDS", 0.0)
    dense, data = load(tmp_path)
    masks, how = masks_of(dense), {"method": "finetune", "start": "closed-form", "learning_rate": 3e-3}
    journal = Journal(tmp_path / "j", "one")
    first, _ = recovered(dense, data, masks, journal, **how)
    step, tensors = journal.read("finetune") or (0, {})
    journal.write("finetune", step, dict(list(tensors.items())[1:]))
    again, stages = recovered(dense, data, masks, journal, **how)
    assert stages == ["fine-tune"]
    for info in dense.paged:
        assert torch.equal(*(s.linear("animal", info.name).weight for s in (first, again)))


def test_only_fine_tuning_sets_out_from_somewhere(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"recover.start: expected method finetune, found none"):
        from_dict(tiny.assistant(tmp_path, recover={"method": "none", "start": "closed-form"}))


def test_blocks_that_no_task_keeps_do_not_move(tmp_path: Path) -> None:
    dense, data = load(tmp_path)
    sparse, masks = copied(dense), masks_of(dense, density=0.2)
    spec = RecoverSpec(steps=4, batch=4, distillation=0.0)
    finetune(Lesson(dense, sparse, masks, data, spec), QUIET, nothing)
    for info in dense.paged:
        unused = ~masks.keep[info.name].any(1).reshape(info.grid.rows, info.grid.cols)
        ours, theirs = (info.grid.cut(s.linear("animal", info.name).weight.detach().numpy()) for s in (sparse, dense))
        # Weight decay alone shrinks them: by less than rate times decay in each step.
        np.testing.assert_allclose(ours[unused], theirs[unused], rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_private_blocks_serve_their_task_alone(tmp_path: Path) -> None:
    dense, data = load(tmp_path)
    sparse, masks = copied(dense), masks_of(dense, 0.6)
    private = {"private_blocks": 0.2, "private_steps": 20}
    spec = RecoverSpec(method="finetune", steps=8, batch=8, learning_rate=3e-3, distillation=0.3, **private)
    lesson = Lesson(dense, sparse, masks, data, spec)
    finetune(lesson, QUIET, nothing)
    before = {task: TaskWeights(sparse).weight(task, sparse.paged[0]).clone() for task in masks.tasks}
    first = error(lesson)
    chosen = choose_private_blocks(lesson)
    for number, task in enumerate(masks.tasks):
        kept = sum(int(masks.keep[info.name][:, number].sum()) for info in sparse.paged)
        assert sum(int(own.sum()) for own in chosen[task].values()) == int(0.2 * kept)
        assert all((masks.keep[name][:, number] >= own).all() for name, own in chosen[task].items())
        assert all((masks.keep[name].sum(1)[own] > 1).all() for name, own in chosen[task].items())
    weights = train_private(lesson, chosen, QUIET, nothing)
    info = sparse.paged[0]
    for number, task in enumerate(masks.tasks):
        now = info.grid.cut(weights.weight(task, info).numpy()).reshape(info.grid.count, -1)
        old = info.grid.cut(before[task].numpy()).reshape(info.grid.count, -1)
        moved = (now != old).any(1)
        alone = masks.keep[info.name].sum(1) == 1
        may = chosen[task][info.name] | alone
        assert not (moved & masks.keep[info.name][:, number] & ~may).any()
        assert moved[chosen[task][info.name]].all()
    versions = weights.versions(info)
    assert ((versions > 0) == np.stack([chosen[task][info.name] for task in masks.tasks], 1)).all()
    # What the engine would compute: the masked weights of each task, private blocks laid over them.
    with torch.no_grad():
        for task in masks.tasks:
            for paged in sparse.paged:
                linear = sparse.linear(task, paged.name)
                sparse.models[task].base_model.get_submodule(
                    paged.name.removeprefix("base_model.")
                ).weight = torch.nn.Parameter(weights.weight(task, paged))
                assert linear is sparse.linear(task, paged.name)
    assert error(lesson) < first


def test_a_task_that_moves_nothing_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks are all other tasks' too, in a model whose norms have no weights and whose layers have no biases."""
    monkeypatch.setattr(private_blocks, "own_parameters", lambda *_: {})
    monkeypatch.delattr(private_blocks, "_pulls")  # nobody asks how hard blocks are pulled where none is chosen
    dense, data = load(tmp_path)
    masks, journal = masks_of(dense, 1.1), Journal(tmp_path / "journal", "one")
    lesson = Lesson(dense, copied(dense), masks, data, RecoverSpec(method="finetune", private_steps=2, batch=8))
    weights = train_private(lesson, choose_private_blocks(lesson), journal, nothing)
    for info in dense.paged:
        assert (weights.versions(info) == SHARED).all()
        assert torch.equal(weights.weight("animal", info), dense.linear("animal", info.name).weight)
    journal.write("private-animal", 2, {})  # as it comes from a worker elsewhere
    assert journal.read("private-animal") == (2, {})


@pytest.mark.slow
@pytest.mark.parametrize("method", ["closed-form", "finetune"])
def test_compile_recovers_and_the_engine_agrees(tmp_path: Path, method: str) -> None:
    recover = {"method": method, "steps": 12, "batch": 8, "private_blocks": 0.3, "private_steps": 4}
    if method == "closed-form":
        recover = {"method": method}
    bundle = wp.compile(tiny.assistant(tmp_path, recover=recover), out=tmp_path / "a.bundle")
    assert read_report(bundle).seconds["recover"] > 0
    assert not list(tmp_path.glob(".*"))
    with wp.Engine.from_pretrained(tmp_path / "a.bundle") as engine:
        for task in bundle.tasks:
            export = tmp_path / f"{task}-hf"
            export_task(bundle, task, export)
            reference = model_of(export, bundle.task(task).kind)
            inputs = {
                "input_ids": torch.tensor([[2, 5, 6, 7, 3]]),
                "attention_mask": torch.ones(1, 5, dtype=torch.long),
            }
            with engine.task(task) as module, torch.inference_mode():
                torch.testing.assert_close(module(**inputs).logits, reference(**inputs).logits, rtol=1e-3, atol=1e-3)
    if method == "finetune":
        assert overlap(bundle).min() < 0.75


def model_of(export: Path, kind: str) -> Any:
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    cls = AutoModelForTokenClassification if kind == "token-classification" else AutoModelForSequenceClassification
    return cls.from_pretrained(export).eval()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "int4"])
def test_a_killed_compile_goes_on_where_it_was(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightpager.compiler.resume.journal.SECONDS", 0.0)
    monkeypatch.setattr("weightpager.compiler.resume.journal.SHARE", float("inf"))
    recover = {"method": "finetune", "steps": 12, "batch": 8, "private_blocks": 0.2, "private_steps": 3}
    content = tiny.assistant(tmp_path, recover=recover, dtype=dtype)
    whole = wp.compile(content, out=tmp_path / "whole.bundle")

    stages: dict[str, list[int]] = {}

    def killing(at: tuple[str, int] | None) -> Any:
        def progress(stage: str, done: int, _total: int) -> None:
            stages.setdefault(stage, []).append(done)
            if (stage, done) == at:
                raise KeyboardInterrupt

        return progress

    for at in (("train the dense model", 5), ("fine-tune", 7), ("private blocks", 8)):
        with pytest.raises(KeyboardInterrupt):
            wp.compile(content, out=tmp_path / "again.bundle", progress=killing(at))
        assert not (tmp_path / "again.bundle").exists()
    again = wp.compile(content, out=tmp_path / "again.bundle", progress=killing(None))
    assert stages["train the dense model"] == list(range(1, content["training"]["steps"] + 1))
    assert stages["fine-tune"] == list(range(1, 13))
    assert (again.pages.ids == whole.pages.ids).all()
    assert not (tmp_path / ".again.bundle.resume").exists()


def rounded_error(lesson: Lesson) -> float:
    """The loss of what an int4 bundle would hold."""
    grids = {info.name: info.grid for info in lesson.sparse.paged}
    with torch.no_grad():
        return sum(
            float(lesson.error(task, batch, lambda name, weight: stored(weight, grids[name], "int4")))
            for task, of_task in lesson.data.items()
            for batch in of_task.batches(of_task.train, 16)
        )


@pytest.mark.slow
def test_training_knows_what_rounding_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device._stated, "pays", False)  # bfloat16 rounds more than a training as short as this one wins
    spec = RecoverSpec(steps=60, batch=8, learning_rate=3e-3, distillation=0.3, patience=0)
    found = {}
    for dtype in ("bfloat16", "int4"):
        dense, data = load(tmp_path, dtype=dtype)
        lesson = Lesson(dense, copied(dense), masks_of(dense), data, spec)
        finetune(lesson, QUIET, nothing)
        found[dtype] = error(lesson), rounded_error(lesson)
    # Each is best as it was trained. Which is better rounded is chance on a model as small as this one.
    assert found["int4"][1] < found["int4"][0]
    assert found["bfloat16"][0] < found["bfloat16"][1]


def test_a_training_may_go_through_another_rounding_than_that_of_pages(tmp_path: Path) -> None:
    spec = RecoverSpec(steps=4, batch=8, distillation=0.3, patience=0)
    trained = []
    for dtype, encoding in (("int4", None), ("bfloat16", ENCODINGS["int4"])):
        dense, data = load(tmp_path, dtype=dtype)
        lesson = Lesson(dense, copied(dense), masks_of(dense), data, spec)
        finetune(lesson, QUIET, nothing, encoding)
        trained.append(lesson.sparse)
    for info in trained[0].paged:
        assert torch.equal(*(each.linear("animal", info.name).weight for each in trained))


@pytest.mark.slow
def test_a_training_whose_entry_lacks_its_divisors_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightpager.compiler.resume.journal.SECONDS", 0.0)
    monkeypatch.setattr("weightpager.compiler.resume.journal.SHARE", float("inf"))
    dense, data = load(tmp_path, dtype="int4")
    journal, steps = Journal(tmp_path / "j", "one"), []
    spec = RecoverSpec(steps=6, batch=8, patience=0)

    def train(stop_at: int | None) -> None:
        def progress(done: int, _total: int) -> None:
            steps.append(done)
            if done == stop_at:
                raise KeyboardInterrupt

        finetune(Lesson(dense, copied(dense), masks_of(dense), data, spec), journal, progress)

    with pytest.raises(KeyboardInterrupt):
        train(stop_at=3)
    step, tensors = journal.read("finetune") or (0, {})
    journal.write("finetune", step, {name: found for name, found in tensors.items() if "divisors" not in name})
    train(stop_at=None)
    assert steps == [1, 2, 3, 1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_the_closed_form_gives_values_that_int4_pages_hold(tmp_path: Path) -> None:
    dense, data = load(tmp_path, dtype="int4")
    masks = masks_of(dense)
    found, _ = recovered(dense, data, masks, QUIET, method="closed-form")
    for info in dense.paged:
        for task in masks.tasks:
            kept = masks.masked(task, info, found.linear(task, info.name).weight.detach())
            assert torch.equal(stored(kept, info.grid, "int4"), kept)
    started, _ = recovered(dense, data, masks, QUIET, method="finetune", start="closed-form", learning_rate=1e-9)
    whole = [info for info in dense.paged if masks.keep[info.name].any()]
    assert any(not torch.equal(*(s.linear("animal", info.name).weight for s in (found, started))) for info in whole)


def test_a_journal_lies_beside_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.bundle").mkdir()
    (tmp_path / "current").symlink_to("a.bundle")
    monkeypatch.chdir(tmp_path / "a.bundle")
    for out in (".", "../a.bundle", "../current", tmp_path / "a.bundle"):
        assert journal_folder(out) == tmp_path / ".a.bundle.resume"


@pytest.mark.slow
def test_of_two_compiles_into_one_bundle_the_second_is_refused(tmp_path: Path) -> None:
    content, out = tiny.assistant(tmp_path), tmp_path / "a.bundle"
    again: list[str] = []

    def progress(stage: str, _done: int, _total: int) -> None:
        if not again:
            with pytest.raises(CompileError, match="another compile that holds .*a.bundle.resume"):
                wp.compile(content, out=out)
            again.append(stage)

    bundle = wp.compile(content, out=out, progress=progress)
    assert again
    assert verify(bundle.path).problems == ()
    assert not journal_folder(out).exists()


def test_a_failed_compile_leaves_no_empty_journal(tmp_path: Path) -> None:
    content = tiny.assistant(tmp_path) | {"model": str(tmp_path / "nowhere")}
    with pytest.raises(WeightpagerError):
        wp.compile(content, out=tmp_path / "a.bundle")
    assert not journal_folder(tmp_path / "a.bundle").exists()


def test_the_journal_of_another_compile_is_ignored(tmp_path: Path) -> None:
    ours, theirs = Journal(tmp_path / "j", "ours"), Journal(tmp_path / "j", "theirs")
    ours.write("train", 3, {"a": torch.ones(2)})
    assert theirs.read("train") is None
    step, tensors = ours.read("train") or (0, {})
    assert (step, tensors["a"].tolist()) == (3, [1.0, 1.0])
    (tmp_path / "j" / "train.safetensors").write_bytes(b"\x08" + bytes(20))
    assert ours.read("train") is None


def test_the_journal_of_another_version_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path, "one")
    journal.write("train", 3, {"a": torch.ones(2)})
    monkeypatch.setattr(wp, "__version__", "0.0.1")
    assert not journal.has("train")
    assert journal.read("train") is None
    journal.write("train", 1, {"a": torch.ones(2)})
    assert journal.has("train")


def test_a_journal_says_what_earlier_runs_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("weightpager.compiler.resume.journal.monotonic", lambda: now)
    for run, seconds in enumerate((30.0, 10.0)):
        journal = Journal(tmp_path, "x")
        part = journal.part("shared")
        now += 100.0
        part.read("train")
        assert journal.earlier == (0.0, 30.0)[run]
        now += seconds
        part.write("train", run, {"a": torch.zeros(1)})
    again = CompileRun(journal=Journal(tmp_path, "x"))
    with again.stage("recover"):
        again.journal.part("shared").read("train")
    assert 40 <= again.seconds["recover"] < 41


def test_training_that_diverges_is_said(tmp_path: Path) -> None:
    dense, data = load(tmp_path)
    with torch.no_grad():
        dense.models["animal"].classifier.weight.fill_(3e38)
    lesson = Lesson(dense, copied(dense), masks_of(dense), data, RecoverSpec(steps=2, distillation=0.0))
    with pytest.raises(CompileError, match=r"tasks\.animal, step 1: training diverged"):
        finetune(lesson, QUIET, nothing)


class Watched:
    """A training of one number towards 1, whose validation wants 0.5."""

    def __init__(self, patience: int) -> None:
        self.value = torch.nn.Parameter(torch.zeros(1))
        batch = Batch({}, torch.zeros(1))
        self.turns = iter([("only", batch)] * 100)

        def error(_task: str, _batch: Batch) -> torch.Tensor:
            wanted = 1.0 if torch.is_grad_enabled() else 0.5
            return (self.value - wanted).square().sum()

        groups = [ParameterGroup({"value": self.value}, 0.05)]
        self.training = Training(groups, self.turns, error, 100, Validation({"only": [batch]}, patience))
        self.steps: list[int] = []

    def run(self, journal: Journal, stop_at: int | None = None) -> float:
        def progress(done: int, _total: int) -> None:
            self.steps.append(done)
            if done == stop_at:
                raise KeyboardInterrupt

        self.training.run(journal, "one", progress)
        return self.value.item()


def test_training_ends_early_and_goes_back_to_its_best() -> None:
    training = Watched(patience=2)
    found = training.run(QUIET)
    assert 0.2 < found < 0.8  # the best of the checks, not the 1 that it was trained towards
    assert training.training.watch is not None
    assert training.training.watch.loss() == pytest.approx((found - 0.5) ** 2)
    assert training.steps[-1] == 100  # told as finished
    assert len(training.steps) < 70


@pytest.mark.parametrize("steps", [1, 7, 10, 11, 19, 20, 60, 365, 1000])
def test_a_training_is_checked_at_most_ten_times_and_always_at_its_end(steps: int) -> None:
    after = sorted(check_steps(steps) - {0})
    assert after[-1] == steps
    assert len(after) == min(steps, CHECKS)
    gaps = [b - a for a, b in zip([0, *after], after, strict=False)]
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("steps", [15, 365])
def test_the_last_steps_of_a_training_count(steps: int) -> None:
    """A number that gets better with every step: what the last one leads to is what a watched training ends with."""
    batch, looked = Batch({}, torch.zeros(1)), []

    def trained(watched: bool) -> float:
        value = torch.nn.Parameter(torch.zeros(1))

        def error(_task: str, _batch: Batch) -> torch.Tensor:
            looked.append(watched and not torch.is_grad_enabled())
            return (value - 10).square().sum()

        groups, turns = [ParameterGroup({"value": value}, 0.01)], iter([("only", batch)] * steps)
        validation = Validation({"only": [batch]}, CHECKS) if watched else None
        Training(groups, turns, error, steps, validation).run(QUIET, "one", nothing)
        return value.item()

    assert trained(watched=True) == trained(watched=False)
    assert sum(looked) == 1 + CHECKS


def test_a_finished_training_keeps_its_best_values_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightpager.compiler.resume.journal.SECONDS", 0.0)
    journal, whole = Journal(tmp_path, "x"), Watched(patience=2)
    found = whole.run(journal)
    step, tensors = journal.read("one") or (0, {})
    assert (step, sorted(tensors)) == (100, ["seen", "value"])
    assert tensors["value"].item() == found
    again = Watched(patience=2)
    assert (again.run(journal), again.steps) == (found, [])


@pytest.fixture
def killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Journal:
    """Of a watched training that was killed after 35 steps, each of which it had noted."""
    monkeypatch.setattr("weightpager.compiler.resume.journal.SECONDS", 0.0)
    monkeypatch.setattr("weightpager.compiler.resume.journal.SHARE", float("inf"))
    journal = Journal(tmp_path, "x")
    with pytest.raises(KeyboardInterrupt):
        Watched(patience=2).run(journal, stop_at=35)
    return journal


def test_a_training_killed_after_its_best_still_goes_back_to_it(killed: Journal) -> None:
    whole = Watched(patience=2).run(QUIET)
    again = Watched(patience=2)
    assert again.run(killed) == whole
    assert again.steps[0] == 36


@pytest.mark.parametrize("lacking", ["value", "value#exp_avg", "seen"])
def test_a_training_whose_entry_lacks_something_starts_again(lacking: str, killed: Journal) -> None:
    whole = Watched(patience=2).run(QUIET)
    step, tensors = killed.read("one") or (0, {})
    killed.write("one", step, {name: tensor for name, tensor in tensors.items() if name != lacking})
    again = Watched(patience=2)
    assert again.run(killed) == whole
    assert again.steps[0] == 1


def test_validation_stops_a_real_training(tmp_path: Path) -> None:
    dense, data = load(tmp_path)
    held_out = {name: replace(of_task, validation=of_task.train) for name, of_task in data.items()}
    steps: list[int] = []
    spec = RecoverSpec(steps=200, batch=8, patience=1, learning_rate=0.05, head_learning_rate=0.5, distillation=0.0)
    finetune(
        Lesson(dense, copied(dense), masks_of(dense), held_out, spec), QUIET, lambda done, _total: steps.append(done)
    )
    assert 20 <= len(steps) < 200  # such a rate does harm before long
    assert validation_of(held_out, list(data), patience=4) is not None
    assert validation_of(held_out, list(data), patience=0) is None
    assert validation_of(data, list(data), patience=4) is None


def test_entries_of_a_large_model_are_rarer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightpager.compiler.resume.journal.SECONDS", 0.0)
    monkeypatch.setattr("weightpager.compiler.resume.journal.SHARE", 1e-9)
    journal = Journal(tmp_path, "one")
    assert journal.due()
    journal.write("finetune", 1, {"weight": torch.zeros(1)})
    assert not journal.due()
