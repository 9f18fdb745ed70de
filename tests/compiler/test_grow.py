"""Adding tasks to a bundle: the old tasks stay bit for bit, the new ones reuse what is there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertLMHeadModel

import tiny
import weightpager as wp
from weightpager.backends.torch.export import dense_weights
from weightpager.backends.torch.parameters import read_parameters
from weightpager.backends.verify import verify
from weightpager.bundle import Bundle
from weightpager.bundle.format.names import RESIDENT, private_file
from weightpager.bundle.garbage import collect
from weightpager.bundle.report.compile_report import read_report
from weightpager.compiler import calibration, growth
from weightpager.compiler.alignment.structure_aligner import align_new_tasks
from weightpager.compiler.base_bundle import BaseBundle
from weightpager.compiler.model import dense_model
from weightpager.compiler.recovery.finetune import Lesson
from weightpager.compiler.recovery.private_blocks import train_private
from weightpager.compiler.reorder.apply import apply
from weightpager.compiler.repack import repack
from weightpager.compiler.task_file import from_dict
from weightpager.errors import CompileError, ConfigError, UnknownTaskError

INPUTS = {"input_ids": torch.tensor([[2, 5, 9, 11, 3]]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}
TRAINED = {"method": "finetune", "steps": 8, "batch": 8, "private_blocks": 0.2, "private_steps": 4}


def outputs(bundle: Path, tasks: list[str]) -> dict[str, torch.Tensor]:
    with wp.Engine.from_pretrained(bundle) as engine:
        found = {}
        for task in tasks:
            with engine.task(task) as module, torch.inference_mode():
                found[task] = module(**INPUTS).logits
        return found


def same_outputs(first: Path, second: Path, tasks: list[str]) -> bool:
    ours, theirs = outputs(first, tasks), outputs(second, tasks)
    return all(torch.equal(ours[task], theirs[task]) for task in tasks)


def new_tasks(folder: Path, **changes: Any) -> dict[str, Any]:
    """A task file of one new task on the tiny encoder."""
    content = tiny.assistant(folder)
    for key in ("block", "page", "dtype"):
        del content[key]
    content["tasks"] = {"pet": tiny.classification(folder, "pet", {"cat": ["cat"], "dog": ["dog"], "cow": ["cow"]})}
    return content | changes


def folder_of(path: Path, name: str) -> Path:
    folder = path / name
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def private_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four tasks, some of whose blocks have several versions, and whose vectors are their own."""
    folder = tmp_path_factory.mktemp("private")
    wp.compile(tiny.assistant(folder, recover=TRAINED), out=folder / "base.bundle")
    return folder / "base.bundle"


@pytest.fixture(scope="module")
def grown_bundle(private_bundle: Path) -> Path:
    """The same, with a fifth task."""
    out = private_bundle.with_name("grown.bundle")
    wp.compile(new_tasks(private_bundle.parent), out=out, base=private_bundle)
    return out


@pytest.mark.slow
@pytest.mark.parametrize(("of_base", "of_new"), [(0.5, 0.0), (0.0, 0.5), (0.5, 0.5)])
def test_the_report_claims_floors_that_all_tasks_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_base: float, of_new: float
) -> None:
    monkeypatch.setattr(calibration, "choose_evenness", lambda *_: of_base)
    base = wp.compile(tiny.assistant(tmp_path), out=tmp_path / "base.bundle")
    monkeypatch.setattr(calibration, "choose_evenness", lambda *_: of_new)
    grown = wp.compile(new_tasks(folder_of(tmp_path, "new")), out=tmp_path / "grown.bundle", base=base.path)
    assert read_report(base).evenness == of_base
    assert read_report(grown).evenness == min(of_base, of_new)


@pytest.mark.slow
@pytest.mark.parametrize("recover", ["none", "finetune"])
def test_old_tasks_stay_bit_for_bit(private_bundle: Path, grown_bundle: Path, tmp_path: Path, recover: str) -> None:
    base, grown = Bundle.open(private_bundle), Bundle.open(grown_bundle)
    if recover == "finetune":
        grown = wp.compile(new_tasks(tmp_path, recover=TRAINED), out=tmp_path / "grown.bundle", base=private_bundle)
    old = list(base.tasks)
    assert list(grown.tasks) == [*old, "pet"]
    assert verify(grown.path).problems == ()
    assert (grown.pages.ids[: len(base.pages)] == base.pages.ids).all()
    for task in old:
        assert (grown.pages_of(task) == base.pages_of(task)).all()
    assert (grown.path / RESIDENT).read_bytes() == (private_bundle / RESIDENT).read_bytes()
    assert same_outputs(private_bundle, grown.path, old)
    report, growth = read_report(grown), read_report(grown).growth
    assert growth is not None
    assert growth.tasks == ["pet"]
    assert growth.added_bytes == (len(grown.pages) - len(base.pages)) * grown.page_bytes
    kept = len(grown.kept_locations("pet")) * grown.block_bytes
    assert 0 < growth.reused_bytes < kept <= growth.reused_bytes + growth.added_bytes
    assert report.over_read["pet"] == pytest.approx(1 - kept / (len(grown.pages_of("pet")) * grown.page_bytes))
    assert [score.name for score in report.tasks] == [*old, "pet"]


@pytest.mark.slow
@pytest.mark.parametrize("recover", ["none", "finetune"])
def test_int4_pages_of_a_base_stay_where_training_rounds(tmp_path: Path, recover: str) -> None:
    spec = TRAINED if recover == "finetune" else "none"
    base = wp.compile(tiny.assistant(tmp_path, recover=TRAINED, dtype="int4"), out=tmp_path / "base.bundle")
    new = new_tasks(folder_of(tmp_path, "new"), recover=spec)
    grown = wp.compile(new, out=tmp_path / "grown.bundle", base=base.path)
    assert grown.manifest.dtype == "int4"
    assert (grown.pages.ids[: len(base.pages)] == base.pages.ids).all()
    assert same_outputs(base.path, grown.path, list(base.tasks))
    assert verify(grown.path).problems == ()


@pytest.mark.slow
def test_growth_counts_low_rank_parts_and_goes_with_its_tasks(private_bundle: Path, tmp_path: Path) -> None:
    trained = {"method": "finetune", "steps": 2, "low_rank": 2}
    grown = wp.compile(new_tasks(tmp_path, recover=trained), out=tmp_path / "grown.bundle", base=private_bundle)
    growth = read_report(grown).growth
    assert growth is not None
    assert growth.private_bytes == grown.entry(private_file("pet")).bytes + grown.low_rank_bytes("pet")
    assert grown.low_rank_bytes("pet") > 0
    collect(grown.path, drop=[next(iter(grown.tasks))])
    assert read_report(Bundle.open(grown.path)).growth == growth
    collect(grown.path, drop=["pet"])
    assert read_report(Bundle.open(grown.path)).growth is None


def test_a_new_task_computes_with_the_bases_blocks(private_bundle: Path, grown_bundle: Path, tmp_path: Path) -> None:
    grown = Bundle.open(grown_bundle)
    base, ours = BaseBundle.open(private_bundle), dense_weights(grown, "pet")
    theirs = {task: dense_weights(grown, task) for task in base.bundle.tasks}
    dense = dense_model.load(from_dict(new_tasks(tmp_path, block="8x16")))
    apply(dense.models, grown.permutations())
    for info in dense.paged:
        table = grown.tables("pet")[info.name]
        kept = table.blocks(info.grid)
        blocks = info.grid.cut(ours[info.name].float().numpy()).reshape(info.grid.count, -1)
        start = dense.linear("pet", info.name).weight.detach().bfloat16().float().numpy()
        first = info.grid.cut(start).reshape(info.grid.count, -1)
        for block in kept:
            users = [t for number, t in enumerate(base.bundle.tasks) if base.keep[info.name][block, number]]
            if not users:
                assert (blocks[block] == first[block]).all()
            else:
                versions = [info.grid.cut(theirs[t][info.name].float().numpy()) for t in users]
                assert any((v.reshape(info.grid.count, -1)[block] == blocks[block]).all() for v in versions)


def test_who_holds_what_new_tasks_would_take(private_bundle: Path) -> None:
    base = BaseBundle.open(private_bundle)
    others = 0
    for info in base.bundle.manifest.weights:
        grid = base.bundle.manifest.grid(info)
        for number, task in enumerate(base.bundle.tasks):
            table = base.bundle.tables(task)[info.name]
            where = np.full(grid.count, -1)
            where[table.blocks(grid)] = table.locations
            same = (where == base.locations[info.name]) & (where >= 0)
            assert (base.shared[info.name][:, number] == same).all()
            others += int((base.keep[info.name][:, number] & ~same).sum())
    assert others > 0


@pytest.mark.slow
def test_blocks_that_the_base_has_in_another_version_count_as_absent(
    private_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def aligned(saliency: np.ndarray, fixed: np.ndarray, *others: Any) -> np.ndarray:
        seen.append(fixed)
        return align_new_tasks(saliency, fixed, *others)

    monkeypatch.setattr("weightpager.compiler.growth.align_new_tasks", aligned)
    wp.compile(new_tasks(tmp_path), out=tmp_path / "grown.bundle", base=private_bundle)
    base = BaseBundle.open(private_bundle)
    (fixed,) = seen
    assert (fixed == np.concatenate(list(base.shared.values()))).all()


@pytest.mark.slow
def test_a_new_task_learns(tmp_path: Path) -> None:
    steps = {"steps": 60, "batch": 16, "head_learning_rate": 1e-2}
    base = wp.compile(tiny.assistant(tmp_path, training=steps, sparsity=0.1), out=tmp_path / "base.bundle")
    content = new_tasks(tmp_path, training=steps | {"steps": 200}, sparsity=0.1)
    grown = wp.compile(content, out=tmp_path / "grown.bundle", base=base.path)
    score = next(score for score in read_report(grown).tasks if score.name == "pet")
    assert score.sparse > 0.4  # of three classes
    assert score.dense is not None


@pytest.mark.slow
def test_fine_tuning_trains_all_that_is_a_new_tasks_own(
    tmp_path: Path, assistant_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: dict[str, bool] = {}

    def watched(lesson: Lesson, *others: Any) -> Any:
        sparse = lesson.sparse
        before = {name: tensor.clone() for name, tensor in sparse.parameters("pet").items()}
        found = train_private(lesson, *others)
        moved.update({name: not torch.equal(tensor, before[name]) for name, tensor in sparse.parameters("pet").items()})
        return found

    monkeypatch.setattr(growth, "train_private", watched)
    wp.compile(new_tasks(tmp_path, recover=TRAINED), out=tmp_path / "grown.bundle", base=assistant_bundle)
    own = ("classifier.weight", "base_model.pooler.dense.weight", "base_model.embeddings.LayerNorm.bias")
    assert all(moved[name] for name in own)
    assert not moved["base_model.embeddings.word_embeddings.weight"]


@pytest.mark.slow
def test_a_bundle_grows_in_place_and_again(tmp_path: Path, assistant_bundle: Path) -> None:
    first = wp.compile(new_tasks(tmp_path), out=tmp_path / "a.bundle", base=assistant_bundle)
    more = new_tasks(tmp_path)
    more["tasks"] = {
        "sky": tiny.classification(tmp_path, "sky", {"sun": ["sun"], "rain": ["rain"]}),
        "word": tiny.tagging(tmp_path, "word"),
    }
    with pytest.raises(ConfigError, match="--force"):
        wp.compile(more, out=first.path, base=first.path)
    second = wp.compile(more, out=first.path, base=first.path, force=True)
    assert list(second.tasks) == [*first.tasks, "sky", "word"]
    assert second.manifest.page_files[: len(first.manifest.page_files)] == first.manifest.page_files
    assert verify(second.path).problems == ()
    assert same_outputs(assistant_bundle, second.path, list(Bundle.open(assistant_bundle).tasks))
    assert os.listdir(tmp_path).count("a.bundle") == 1
    assert not list(tmp_path.glob(".*"))


def test_a_language_model_grows(tmp_path: Path, writer_bundle: Path) -> None:
    content = tiny.writer(tmp_path)
    content["tasks"] = {"colours": tiny.text(tmp_path, "colours", tiny.WORDS[:3])}
    grown = wp.compile(content, out=tmp_path / "grown.bundle", base=writer_bundle)
    assert verify(grown.path).problems == ()
    assert same_outputs(writer_bundle, grown.path, ["animals", "numbers"])
    # Nothing was trained: all its parameters are the base's.
    assert not (tmp_path / "grown.bundle/tasks/colours/private.safetensors").read_bytes().count(b"data_offsets")


@pytest.mark.slow
def test_a_task_that_only_looks_words_up_shares_the_bases_table(tmp_path: Path) -> None:
    pets = tiny.classification(tmp_path, "pet", {"cat": ["cat"], "dog": ["dog"]})
    model = str(tiny.llama(tmp_path / "model"))
    content = tiny.writer(tmp_path, model=model, training={"steps": 2, "batch": 4})
    base = wp.compile(content | {"tasks": {"kind": pets}}, out=tmp_path / "base.bundle")
    content["tasks"] = {"pet": pets, "story": tiny.text(tmp_path, "story", tiny.WORDS[:3])}
    grown = wp.compile(content, out=tmp_path / "grown.bundle", base=base.path)
    table = "base_model.embed_tokens.weight"
    assert table not in read_parameters(grown, private_file("pet"))
    assert table in read_parameters(grown, private_file("story"))  # its head multiplies by it


@pytest.mark.slow
def test_what_is_listed_of_the_base_stays_listed(tmp_path: Path, writer_bundle: Path) -> None:
    content = tiny.writer(tmp_path, training={"steps": 2, "batch": 4})
    content["tasks"] = {"pet": tiny.classification(tmp_path, "pet", {"cat": ["cat"], "dog": ["dog"]})}
    base, grown = Bundle.open(writer_bundle), wp.compile(content, out=tmp_path / "grown.bundle", base=writer_bundle)
    assert read_report(grown).tied == read_report(base).tied == {"base_model.embed_tokens.weight": ["lm_head.weight"]}
    assert grown.manifest.resident_reasons == {**base.manifest.resident_reasons, "score.weight": "head"}


@pytest.mark.slow
def test_a_head_that_is_not_known_is_not_put_on_a_reordered_base(tmp_path: Path) -> None:
    content = tiny.assistant(tmp_path)
    del content["tasks"]["colour"]
    config = BertConfig.from_pretrained(content["model"], is_decoder=True)
    BertLMHeadModel(config).save_pretrained(content["model"])
    more = content | {"tasks": {"story": tiny.text(tmp_path, "story", tiny.WORDS)}}
    reordered = wp.compile(content, out=tmp_path / "reordered.bundle")
    with pytest.raises(CompileError, match=r"tasks\.story: expected .* found BertLMHeadModel; .* 'reorder: false'"):
        wp.compile(more, out=tmp_path / "no.bundle", base=reordered.path)
    base = wp.compile(content | {"reorder": False}, out=tmp_path / "base.bundle")
    grown = wp.compile(more | {"sparsity": 0.0}, out=tmp_path / "grown.bundle", base=base.path)
    story = grown.task("story").dense
    assert story is not None
    assert read_report(grown).tasks[-1].sparse == pytest.approx(story.value, rel=0.02)


@pytest.mark.slow
def test_a_bundle_of_one_task_grows(tmp_path: Path) -> None:
    content = tiny.assistant(tmp_path)
    content["tasks"] = {"animal": content["tasks"]["animal"]}
    base = wp.compile(content, out=tmp_path / "base.bundle")
    grown = wp.compile(new_tasks(tmp_path), out=tmp_path / "grown.bundle", base=base.path)
    assert verify(grown.path).problems == ()
    assert same_outputs(base.path, grown.path, ["animal"])
    assert outputs(grown.path, ["pet"])["pet"].shape == (1, 3)


def test_what_does_not_fit_the_base_is_said(tmp_path: Path, assistant_bundle: Path) -> None:
    def refused(error: type[Exception], match: str, **changes: Any) -> None:
        with pytest.raises(error, match=match):
            wp.compile(new_tasks(tmp_path, **changes), out=tmp_path / "no.bundle", base=assistant_bundle)
        assert not (tmp_path / "no.bundle").exists()

    refused(ConfigError, r"block: expected 8x16, that of the base .*, found 16x32", block="16x32")
    refused(ConfigError, "dtype: expected bfloat16", dtype="float32")
    refused(ConfigError, "page: expected 4096", page="8KiB")
    refused(ConfigError, "closed-form", recover="closed-form")
    refused(ConfigError, "closed-form", recover={"method": "finetune", "start": "closed-form"})
    refused(ConfigError, "compare", compare=True)
    shared = {"unit": "layer", "share": 0.2}
    refused(ConfigError, "units.share: expected none with a base; state one unit", units=shared)
    refused(ConfigError, r"tasks\.animal: the base .* has a task of that name", tasks=tiny.assistant(tmp_path)["tasks"])
    own = {name: {**task, "checkpoint": str(tmp_path / "bert")} for name, task in new_tasks(tmp_path)["tasks"].items()}
    refused(ConfigError, r"tasks\.pet\.checkpoint: expected none with a base", tasks=own, recover="none")
    torch.manual_seed(0)
    other = tiny.bert(folder_of(tmp_path, "other"))
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace('"hidden_act": "gelu"', '"hidden_act": "relu"'))
    refused(CompileError, "hidden_act: expected 'gelu', that of the base", model=str(other))


def test_a_share_of_the_metric_is_refused_at_once(tmp_path: Path, assistant_bundle: Path) -> None:
    content, told = new_tasks(tmp_path, keep=0.9), list[str]()
    del content["sparsity"]
    with pytest.raises(ConfigError, match="keep: expected none with a base, whose masks stay; state sparsity"):
        wp.compile(
            content, tmp_path / "no.bundle", base=assistant_bundle, progress=lambda stage, *_: told.append(stage)
        )
    assert told == []


def test_rows_may_be_stated_as_the_base_states_them(tmp_path: Path, assistant_bundle: Path, wordy_bundle: Path) -> None:
    without, tables = BaseBundle.open(assistant_bundle), BaseBundle.open(wordy_bundle)
    on_demand, resident = (from_dict(new_tasks(tmp_path, rows=rows)) for rows in ("on-demand", "resident"))
    for start, task_file in ((without, on_demand), (without, resident), (tables, on_demand)):
        start.refuse_unsuited(task_file)
    with pytest.raises(ConfigError, match="rows: expected on-demand, that of the base .*, found resident"):
        tables.refuse_unsuited(resident)


@pytest.mark.slow
def test_a_killed_growth_leaves_the_base(tmp_path: Path, assistant_bundle: Path) -> None:
    path = tmp_path / "a.bundle"
    repack(assistant_bundle, path)
    before = {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}

    def killing(at: str) -> Any:
        def progress(stage: str, _done: int, _total: int) -> None:
            if stage == at:
                raise KeyboardInterrupt

        return progress

    for stage in ("train the dense model", "calibrate", "train own parameters", "measure pet"):
        with pytest.raises(KeyboardInterrupt):
            wp.compile(new_tasks(tmp_path), out=path, base=path, force=True, progress=killing(stage))
        assert {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()} == before
    assert verify(path).problems == ()


@pytest.mark.slow
def test_repack_changes_no_output(grown_bundle: Path, tmp_path: Path) -> None:
    grown = Bundle.open(grown_bundle)
    done = repack(grown.path, tmp_path / "tidy.bundle")
    assert verify(tmp_path / "tidy.bundle").problems == ()
    assert same_outputs(grown.path, tmp_path / "tidy.bundle", list(grown.tasks))
    assert done.after.fill >= done.before.fill
    assert done.after.bytes <= done.before.bytes
    kept = {task: len(grown.kept_locations(task)) for task in grown.tasks}
    tidy = Bundle.open(tmp_path / "tidy.bundle")
    assert {task: len(tidy.kept_locations(task)) for task in tidy.tasks} == kept
    with pytest.raises(ConfigError, match="page"):
        repack(grown.path, tmp_path / "no.bundle", page=5000)


def test_repack_leaves_tasks_out(private_bundle: Path, tmp_path: Path) -> None:
    names = ["animal", "number", "colour"]
    repack(private_bundle, tmp_path / "less.bundle", without=["weather"], page=8192)
    less = Bundle.open(tmp_path / "less.bundle")
    assert list(less.tasks) == names
    assert less.page_bytes == 8192
    assert verify(less.path).problems == ()
    assert same_outputs(private_bundle, less.path, names)
    report = read_report(less)
    assert [score.name for score in report.tasks] == names
    assert all(set(control.scores) == set(names) for control in report.controls)
    np.testing.assert_allclose(np.array(less.manifest.transitions).sum(1), 1)


@pytest.mark.slow
def test_gc_drops_what_no_task_needs(private_bundle: Path, grown_bundle: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(grown_bundle, tmp_path / "a.bundle"))
    grown = Bundle.open(path)
    old = list(Bundle.open(private_bundle).tasks)
    assert collect(path).pages == 0
    done = collect(path, drop=["pet"])
    left = Bundle.open(path)
    assert list(left.tasks) == old
    assert done.bytes == (len(grown.pages) - len(left.pages)) * left.page_bytes > 0
    # What had been appended for the dropped task is gone, and nothing else.
    assert (left.pages.ids == Bundle.open(private_bundle).pages.ids).all()
    assert verify(path).problems == ()
    assert same_outputs(private_bundle, path, old)
    for task in old[:3]:
        before = len(left.pages)
        collect(path, drop=[task])
        left = Bundle.open(path)
        assert len(left.pages) < before
        assert (left.pages.signatures != 0).all()
        assert verify(path).problems == ()
        assert same_outputs(private_bundle, path, list(left.tasks))
    with pytest.raises(ConfigError, match="at least one task"):
        collect(path, drop=[old[3]])
    with pytest.raises(UnknownTaskError):
        collect(path, drop=["pet"])


def test_links_are_never_written_through(private_bundle: Path, grown_bundle: Path, tmp_path: Path) -> None:
    assert (private_bundle / "pages-0000.safetensors").samefile(grown_bundle / "pages-0000.safetensors")
    before = {file: file.read_bytes() for file in grown_bundle.rglob("*") if file.is_file()}
    path = Path(shutil.copytree(grown_bundle, tmp_path / "a.bundle", copy_function=os.link))
    collect(path, drop=["animal"])
    repack(path, path, force=True)
    assert {file: file.read_bytes() for file in grown_bundle.rglob("*") if file.is_file()} == before
    assert verify(private_bundle).problems == ()


def test_a_trace_names_old_and_new_tasks(tmp_path: Path, assistant_bundle: Path) -> None:
    tasks = new_tasks(tmp_path)
    (new,) = tasks["tasks"]
    visits = ["animal", new, "animal", new, "weather"]
    rows = [{"task": task, "time": time} for time, task in enumerate(visits)]
    (tmp_path / "day.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    grown = wp.compile(
        tasks | {"transitions": str(tmp_path / "day.jsonl")}, out=tmp_path / "grown.bundle", base=assistant_bundle
    )
    names = list(grown.tasks)
    matrix = grown.manifest.transitions
    assert matrix[names.index("animal")][names.index(new)] == max(matrix[names.index("animal")])
