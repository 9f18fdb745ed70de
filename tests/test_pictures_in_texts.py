"""A model that reads pictures among its words, from its task file to bundles, their growth and what is exported."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from blake3 import blake3
from PIL import Image
from safetensors.torch import load, save
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

import tiny
import tiny_llava
import weightpager as wp
from benchmarks.fuzz.sealing import rewrite_manifest
from damage import contents
from fleet import Device, Place
from weightpager.backends.torch.export import export_task
from weightpager.backends.torch.parameters import read_parameters
from weightpager.backends.verify import verify
from weightpager.bundle import Bundle
from weightpager.bundle.format.names import private_file
from weightpager.bundle.report.compile_report import read_report
from weightpager.compiler.model import dense_model
from weightpager.compiler.model.directory import ModelDirectory
from weightpager.compiler.repack import repack
from weightpager.compiler.resume.identities import compile_identity, stage_identities
from weightpager.compiler.task_file.file import from_dict
from weightpager.errors import BundleFormatError, CompileError, ConfigError
from weightpager.readers.tokenizer import open_tokenizer
from weightpager.store import BlockReader
from weightpager.store.block_reader import read_low_rank

SELDOM = {"steps": 2, "batch": 4}
TRAINED = {"method": "finetune", **SELDOM, "private_blocks": 0.2, "private_steps": 2, "low_rank": 2}
PIXELS = np.random.default_rng(0).normal(size=(1, 3, tiny_llava.SIDE, tiny_llava.SIDE)).astype(np.float32)
BEFORE_WORDS = ("base_model.vision_tower.", "base_model.multi_modal_projector.")


def compiled(folder: Path, **changes: Any) -> Bundle:
    return wp.compile(tiny_llava.watcher(folder, training=SELDOM, **changes), out=folder / "bundle")


def features(bundle: Bundle, backend: str = "torch", pixels: npt.NDArray[np.float32] = PIXELS) -> dict[str, Any]:
    with wp.Engine.from_pretrained(bundle.path, backend=backend) as engine:
        found = {}
        for task in bundle.tasks:
            with engine.task(task):
                found[task] = engine.model(task).features(pixels)
        return found


def blocks_of(bundle: Bundle, task: str, part: str) -> dict[str, list[int]]:
    """Where the blocks lie that a task keeps of a part's paged weights."""
    tables = bundle.tables(task)
    return {name: table.locations.tolist() for name, table in tables.items() if name.startswith(f"base_model.{part}")}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Two tasks over one tower, of a density of its own, each with blocks, low-rank parts and norms of its own."""
    folder = tmp_path_factory.mktemp("shared")
    sections = {"recover": TRAINED, "vision": {"blocks": "shared", "sparsity": 0.2}, "sparsity": 0.5}
    return compiled(folder, compare="all", **sections)


@pytest.mark.parametrize(("tower", "language"), [*zip(tiny_llava.TOWERS, tiny_llava.LANGUAGES, strict=True)])
def test_each_tower_and_each_language_model_becomes_a_bundle(
    tmp_path: Path, tower: tiny_llava.TowerName, language: tiny_llava.LanguageName
) -> None:
    model = tiny_llava.llava(tmp_path / "llava", tower, language)
    bundle = compiled(tmp_path, model=str(model))
    assert bundle.pictures is not None
    assert bundle.pictures.plain() == {
        "blocks": "shared", "layers": 2, "token": "<image>", "token_id": 16, "tokens": 4, "width": 48,
    }  # fmt: skip
    weights = bundle.manifest.weights
    assert {weight.layer for weight in weights if "vision_tower" in weight.name} == {0, 1}
    assert {weight.layer for weight in weights if "language_model" in weight.name} == {2, 3}
    assert {name.removeprefix("base_model.").split(".")[0] for name, _ in bundle.permutations().orders} >= {
        "vision_tower", "language_model", "multi_modal_projector",
    }  # fmt: skip
    assert read_report(bundle).without_graph == {}
    assert open_tokenizer(bundle).pictures is not None


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_a_picture_has_the_same_features_for_all_tasks_that_share_a_tower(shared: Bundle, backend: str) -> None:
    first, second = features(shared, backend).values()
    assert first.tobytes() == second.tobytes()


def test_nothing_in_a_shared_tower_is_a_tasks_own(shared: Bundle) -> None:
    first, second = shared.tasks
    assert blocks_of(shared, first, "vision_tower") == blocks_of(shared, second, "vision_tower")
    assert blocks_of(shared, first, "language_model") != blocks_of(shared, second, "language_model")
    for task in shared.tasks:
        own = {*read_low_rank(shared, task), *read_parameters(shared, private_file(task))}
        assert own
        assert not {name for name in own if name.startswith(BEFORE_WORDS)}


def test_densities_are_those_of_all_blocks(shared: Bundle) -> None:
    for task in shared.tasks:
        kept = sum(len(table.locations) for table in shared.tables(task).values())
        of_tower = sum(map(len, blocks_of(shared, task, "vision_tower").values()))
        grids = {weight.name: shared.manifest.grid(weight).count for weight in shared.manifest.weights}
        in_tower = sum(count for name, count in grids.items() if "vision_tower" in name)
        assert of_tower == round(0.8 * in_tower)
        assert kept == of_tower + round(0.5 * (sum(grids.values()) - in_tower))
        assert shared.task(task).sparsity == pytest.approx(1 - kept / sum(grids.values()), abs=0.01)


def test_controls_and_the_report_know_the_tower(shared: Bundle) -> None:
    report = read_report(shared)
    assert {control.name for control in report.controls} >= {"dense", "int4", "shared mask"}
    assert report.paged_share < 1


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Two tasks, each with a tower of its own."""
    return compiled(tmp_path_factory.mktemp("own"), vision="own", recover=TRAINED)


def test_each_task_may_have_a_tower_of_its_own(own: Bundle) -> None:
    assert own.pictures is not None
    assert own.pictures.blocks == "own"
    first, second = own.tasks
    assert blocks_of(own, first, "vision_tower") != blocks_of(own, second, "vision_tower")
    ours, theirs = features(own).values()
    assert ours.tobytes() != theirs.tobytes()


def changed(bundle: Bundle, folder: Path, pictures: Mapping[str, Any], **files: bytes) -> Path:
    """A copy whose manifest says something else of pictures, and has other files; its hashes are right."""
    root = folder / "changed"
    shutil.copytree(bundle.path, root)
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["pictures"] |= pictures
    for name, content in files.items():
        (root / name).write_bytes(content)
        manifest["files"][name] = {"bytes": len(content), "blake3": blake3(content).hexdigest()}
    text = json.dumps(manifest).encode()
    (root / "manifest.json").write_bytes(text)
    (root / "manifest.blake3").write_text(blake3(text).hexdigest() + "\n")
    return root


def check_refused(root: Path, whose: str) -> None:
    with pytest.raises(BundleFormatError, match=rf"manifest.json: pictures.blocks: expected own, .*{whose}") as refused:
        Bundle.open(root)
    assert refused.value.plain in verify(root).problems


@pytest.mark.parametrize("layers", [1, 2])
def test_towers_of_tasks_that_differ_are_shared_by_nobody(own: Bundle, tmp_path: Path, layers: int) -> None:
    assert Bundle.open(changed(own, tmp_path / "still own", {})).pictures == own.pictures
    first, second = own.tasks
    root = changed(own, tmp_path, {"blocks": "shared", "layers": layers})
    check_refused(root, f"{first} and {second} have other blocks of base_model.vision_tower.")


@pytest.mark.parametrize("part", ["vision_tower.norm.bias", "multi_modal_projector.linear_1.bias"])
def test_a_shared_tower_with_parameters_of_a_task_is_refused(shared: Bundle, tmp_path: Path, part: str) -> None:
    task = list(shared.tasks)[1]
    file = private_file(task)
    tensors = load((shared.path / file).read_bytes())
    content = save({**tensors, f"base_model.{part}": torch.zeros(32)})
    check_refused(changed(shared, tmp_path, {}, **{file: content}), f"{task} has base_model.{part} of its own")


def test_a_shared_tower_with_low_rank_parts_of_a_task_is_refused(shared: Bundle, tmp_path: Path) -> None:
    task = next(iter(shared.tasks))
    root, name = changed(shared, tmp_path, {}), shared.manifest.weights[0].name
    assert "vision_tower" in name
    rewrite_manifest(root, lambda manifest: manifest["tasks"][0]["low_rank"]["weights"].insert(0, 0))
    check_refused(root, f"{task} has low-rank parts of its own in {name}")


def test_a_tower_is_refitted_before_the_words_are(tmp_path: Path) -> None:
    still = {"training": {"steps": 1, "learning_rate": 1e-9}, "dtype": "float32", "sparsity": 0.5, "reorder": False}
    content = tiny_llava.watcher(tmp_path, **still)
    plain = wp.compile(content, tmp_path / "plain")
    refitted = wp.compile(content | {"recover": "closed-form"}, tmp_path / "refitted")
    processor = AutoProcessor.from_pretrained(tmp_path / "llava", backend="pil").image_processor
    seen = [Image.open(path).convert("RGB") for path in sorted((tmp_path / "animal").glob("train-*.png"))]
    pixels = processor(images=seen, return_tensors="np")["pixel_values"]
    with torch.inference_mode():
        given = torch.from_numpy(pixels)
        wanted = torch.stack(list(tiny_llava.model(tiny_llava.config()).get_image_features(given).pooler_output))
    far, near = (np.abs(features(each, pixels=pixels)["animal"] - wanted.numpy()).mean() for each in (plain, refitted))
    assert near < 0.9 * far


def test_training_leaves_a_tower_as_the_closed_form_has_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightpager.compiler.resume.journal.SECONDS", 0.0)
    content = tiny_llava.watcher(tmp_path, training={"steps": 1}, dtype="int4", page="4KiB", sparsity=0.5)
    refitted = wp.compile(content | {"recover": "closed-form"}, tmp_path / "refitted")
    trained = {"method": "finetune", "start": "closed-form", "learning_rate": 0.3, "steps": 4, "batch": 4}
    whole = wp.compile(content | {"recover": trained}, tmp_path / "whole")
    for task in refitted.tasks:
        np.testing.assert_array_equal(tower_blocks(whole, task), tower_blocks(refitted, task))
    assert pages(whole) != pages(refitted)

    class KilledError(Exception): ...

    def kill(stage: str, done: int, _total: int) -> None:
        if (stage, done) == ("fine-tune", 2):
            raise KilledError

    with pytest.raises(KilledError):
        wp.compile(content | {"recover": trained}, tmp_path / "resumed", progress=kill)
    resumed = wp.compile(content | {"recover": trained}, tmp_path / "resumed")
    assert pages(resumed) == pages(whole)


def tower_blocks(bundle: Bundle, task: str) -> npt.NDArray[np.uint8]:
    """The content of the blocks that a task keeps of the tower's paged weights."""
    reader = BlockReader(bundle)
    try:
        return reader.read(np.concatenate([*blocks_of(bundle, task, "vision_tower").values()]))
    finally:
        reader.close()


def pages(bundle: Bundle) -> dict[str, bytes]:
    return {name: content for name, content in contents(bundle.path).items() if name.startswith("pages-")}


@pytest.fixture(scope="module")
def grown(shared: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return wp.compile(
        added(tmp_path_factory.mktemp("grown"), shared), base=shared.path, out=shared.path.parent / "grown"
    )


def added(folder: Path, base: Bundle, **changes: Any) -> dict[str, Any]:
    content = tiny_llava.watcher(folder, model=str(base.path.parent / "llava"), training=SELDOM, recover=TRAINED)
    tasks = {"shade": tiny_llava.asking(folder, "shade", {"white": "sun", "black": "rain"})}
    content |= {"tasks": tasks} | changes
    return {key: value for key, value in content.items() if key not in ("block", "page", "dtype")}


def test_a_task_that_is_added_sees_pictures_as_the_others_do(shared: Bundle, grown: Bundle) -> None:
    assert blocks_of(grown, "shade", "vision_tower") == blocks_of(grown, "animal", "vision_tower")
    own = {*read_low_rank(grown, "shade"), *read_parameters(grown, private_file("shade"))}
    assert own
    assert not {name for name in own if name.startswith(BEFORE_WORDS)}
    seen = features(grown)
    assert len({each.tobytes() for each in (*seen.values(), *features(shared).values())}) == 1
    assert grown.pictures == shared.pictures
    assert grown.has_graphs


def test_another_tower_beside_a_base_is_refused(shared: Bundle, tmp_path: Path) -> None:
    for vision, expected in (
        ("own", "vision: expected shared, as of the base .*, found own"),
        ({"sparsity": 0.5}, "vision.sparsity: expected none with a base whose tasks share the tower"),
    ):
        with pytest.raises(ConfigError, match=expected):
            wp.compile(added(tmp_path, shared, vision=vision), base=shared.path, out=tmp_path / "refused")


def test_a_base_without_one_task_is_packed_anew(grown: Bundle, tmp_path: Path) -> None:
    repack(grown.path, tmp_path / "packed", without=["animal"])
    packed = Bundle.open(tmp_path / "packed")
    assert packed.has_graphs
    assert packed.pictures == grown.pictures
    assert features(packed)["shade"].tobytes() == features(grown)["shade"].tobytes()


def test_an_exported_task_is_an_ordinary_directory_with_its_processor(shared: Bundle, tmp_path: Path) -> None:
    export_task(shared, "animal", tmp_path / "exported")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "exported", dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "exported", backend="pil")
    image = Image.open(next((shared.path.parent / "animal").glob("eval-*.png"))).convert("RGB")
    given = processor(images=image, text="<image> cat dog", return_tensors="pt")
    assert (given["input_ids"] == 16).sum() == tiny_llava.TOKENS
    with torch.inference_mode():
        wanted = model(**given).logits
    with wp.Engine.from_pretrained(shared.path) as engine, engine.task("animal") as module, torch.inference_mode():
        found = module(**given).logits
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)


def test_a_tower_is_no_other_tasks_model(tmp_path: Path) -> None:
    content = tiny_llava.watcher(tmp_path)
    tasks = content["tasks"] | {"text": tiny.text(tmp_path, "text", ["cat", "dog"])}
    with pytest.raises(CompileError, match="tasks.text: expected text-generation, the one kind for a model that reads"):
        wp.compile(content | {"tasks": tasks}, tmp_path / "bundle")


def test_vision_is_for_models_with_a_tower(tmp_path: Path) -> None:
    dense_model.load(from_dict(tiny.clerk(tmp_path, vision="shared"), tmp_path))  # as it is unless stated
    with pytest.raises(
        CompileError, match="vision: expected a model that reads pictures among its words, found .* llama"
    ):
        wp.compile(tiny.clerk(tmp_path, vision="own"), tmp_path / "bundle")


def test_an_old_processors_chat_template_goes_before_the_tokenizers(tmp_path: Path) -> None:
    folder = tiny_llava.llava(tmp_path)
    (folder / "chat_template.jinja").unlink()
    old = folder / "chat_template.json"
    old.write_text(json.dumps({"chat_template": "{{ messages[0].content }} old"}), encoding="utf-8")
    assert AutoProcessor.from_pretrained(folder).chat_template == ModelDirectory.open(folder).tokenizer().chat_template
    old.write_text(json.dumps({"chat_template": ["old"]}), encoding="utf-8")
    with pytest.raises(CompileError, match="chat_template.json: expected chat_template, a text, found"):
        ModelDirectory.open(folder).tokenizer()


@pytest.mark.parametrize(("stated", "layers"), [(-1, 3), (-2, 2), (1, 1), ([-2, -3], 2), ([3, 1], 3)])
def test_layers_that_features_never_pass_are_left_out(tmp_path: Path, stated: int | list[int], layers: int) -> None:
    path = tiny_llava.llava(tmp_path / "llava", feature_layer=stated)
    directory = ModelDirectory.open(path)
    assert directory.config.vision_config.num_hidden_layers == layers
    whole, short = (
        LlavaForConditionalGeneration.from_pretrained(path, config=config) for config in (None, directory.config)
    )
    with torch.inference_mode():
        ours, theirs = (
            each.eval().get_image_features(torch.from_numpy(PIXELS)).pooler_output for each in (short, whole)
        )
    assert torch.equal(ours[0], theirs[0])


@pytest.mark.parametrize("stated", [0, 4, -5, [], [1, 9]])
def test_features_of_no_layer_are_refused(tmp_path: Path, stated: int | list[int]) -> None:
    path = tiny_llava.llava(tmp_path / "llava")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"vision_feature_layer": stated}))
    with pytest.raises(CompileError, match="vision_feature_layer"):
        ModelDirectory.open(path)


def test_a_device_pulls_all_that_reads_pictures(shared: Bundle, tmp_path: Path) -> None:
    place = Place.make(tmp_path)
    place.publish(shared.path)
    device = Device(tmp_path / "device", place.trust)
    device.pull(place.root)
    pulled = Bundle.open(device.bundle)
    assert contents(device.bundle) == contents(shared.path)
    assert {"model/preprocessor_config.json", "model/processor_config.json"} <= pulled.manifest.files.keys()
    assert features(pulled)["animal"].tobytes() == features(shared)["animal"].tobytes()


def test_another_picture_is_other_data(tmp_path: Path) -> None:
    content = tiny_llava.watcher(tmp_path)
    before = compile_identity(from_dict(content)), stage_identities(from_dict(content), "")
    assert compile_identity(from_dict(content | {"vision": "shared"})) == before[0]  # as it is unless stated
    assert compile_identity(from_dict(content | {"vision": "own"})) != before[0]
    assert stage_identities(from_dict(content | {"vision": "own"}), "") == before[1]
    tiny.picture(next((tmp_path / "animal").glob("train-*.png")), "white", "another")
    assert compile_identity(from_dict(content)) != before[0]
    assert not set(stage_identities(from_dict(content), "")) & set(before[1])


def test_a_tower_goes_to_another_process(tmp_path: Path) -> None:
    """Transformers notes hidden states by hooks that nothing can pickle."""
    source = dense_model.load(from_dict(tiny_llava.watcher(tmp_path, pictures=False)))
    there = pickle.loads(pickle.dumps(source.alone("animal")))
    ours, theirs = (
        each.models["animal"].get_image_features(torch.from_numpy(PIXELS)).pooler_output[0] for each in (source, there)
    )
    assert torch.equal(ours, theirs)


def test_a_checkpoint_with_a_tower_of_its_own_is_refused_beside_a_shared_one(tmp_path: Path) -> None:
    content = tiny_llava.watcher(tmp_path, recover="none")
    theirs = tiny_llava.llava(tmp_path / "theirs")
    model = LlavaForConditionalGeneration.from_pretrained(theirs)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    model.save_pretrained(theirs)
    content["tasks"] = {name: task | {"checkpoint": str(theirs)} for name, task in content["tasks"].items()}
    assert dense_model.load(from_dict(content)).shares_tower
    with torch.no_grad():
        model.model.vision_tower.encoder.layers[0].mlp.fc1.bias.add_(1)
    model.save_pretrained(theirs)
    with pytest.raises(CompileError, match="tasks.animal.checkpoint: expected the model's picture tower and connector"):
        dense_model.load(from_dict(content))
    own = dense_model.load(from_dict(content | {"vision": "own"}))
    assert not own.shares_tower
