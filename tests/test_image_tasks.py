"""A model of images from its task file to its answers: compiled, run, measured, exported, grown."""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, SwinConfig, SwinModel

import tiny
import weightpager as wp
from command import Command
from weightpager.backends.torch.architecture import image_reader
from weightpager.bundle import Bundle
from weightpager.bundle.files.entry import hash_file
from weightpager.bundle.report.compile_report import read_report
from weightpager.compiler import task_file
from weightpager.errors import BundleFormatError, ImageError


@pytest.fixture
def frame(tmp_path: Path) -> Path:
    return tiny.picture(tmp_path / "frame.png", "red", "unseen", size=(40, 30))


def test_the_tasks_are_learnt(camera_bundle: Path) -> None:
    scores = {task.name: task for task in read_report(Bundle.open(camera_bundle)).tasks}
    assert set(scores) == {"colour", "warm", "bright"}
    assert all(score.metric == "accuracy" and score.items == 24 for score in scores.values())
    assert scores["bright"].sparse == 1.0


@pytest.mark.slow
def test_a_model_whose_stages_differ_works_in_bfloat16_too(weightpager: Command, tmp_path: Path) -> None:
    content = tiny.camera(tmp_path)
    torch.manual_seed(0)
    config = SwinConfig(image_size=16, patch_size=2, embed_dim=32, depths=[2, 2], num_heads=[2, 4], window_size=4)
    SwinModel(config).save_pretrained(tmp_path / "vit")  # beside the image processor that is there
    wp.compile(content, out=tmp_path / "swin.bundle")
    for dtype in ("auto", "bfloat16"):
        done = weightpager("eval", tmp_path / "swin.bundle", "--dtype", dtype, "--json")
        assert done.code == 0, done.err
        assert {row["name"]: row["sparse"] for row in json.loads(done.out)["tasks"]}["bright"] == 1.0


def test_its_neurons_are_reordered(camera_bundle: Path) -> None:
    orders = Bundle.open(camera_bundle).permutations().orders
    assert any("mlp" in name or "intermediate" in name for name in map(str, orders))


def test_run_names_the_class(weightpager: Command, camera_bundle: Path, frame: Path) -> None:
    done = weightpager("run", camera_bundle, "--task", "warm", "--image", frame, "--image", frame, "--json")
    assert done.code == 0, done.err
    first, second = json.loads(done.out)["predictions"]
    assert first["label"] in ("red", "blue")
    assert 0.5 <= first["score"] <= 1
    assert first["text"] == str(frame)
    assert first == second


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a text"], "expected '--image FILE', since warm reads images, found a text"),
        ([], "expected '--image FILE', since warm reads images, found none"),
        (["--image", "absent.png"], "absent.png: expected an image, found no file at absent.png"),
        (["--image", __file__], "found something else"),
    ],
)
def test_run_says_what_is_wrong(weightpager: Command, camera_bundle: Path, arguments: list[str], expected: str) -> None:
    done = weightpager("run", camera_bundle, "--task", "warm", *arguments)
    assert done.code != 0
    assert expected in " ".join(done.err.split())


def test_texts_come_without_images(weightpager: Command, assistant_bundle: Path, frame: Path) -> None:
    done = weightpager("run", assistant_bundle, "--task", "animal", "--image", frame)
    assert done.code == 2
    assert "expected texts, since animal reads texts" in " ".join(done.err.split())


def test_each_bundle_has_its_own_preprocessor(camera_bundle: Path, assistant_bundle: Path) -> None:
    with wp.Engine.from_pretrained(camera_bundle) as engine:
        assert engine.image_processor().size["height"] == 16
        with pytest.raises(BundleFormatError, match="none: the tasks read images"):
            engine.tokenizer()
    with (
        wp.Engine.from_pretrained(assistant_bundle) as engine,
        pytest.raises(BundleFormatError, match="none: the tasks read texts"),
    ):
        engine.image_processor()


def test_measuring_again_gives_the_same(weightpager: Command, camera_bundle: Path) -> None:
    done = weightpager("eval", camera_bundle, "--json", "--quiet")
    assert done.code == 0, done.err
    reported = {task.name: (task.dense, task.sparse) for task in read_report(Bundle.open(camera_bundle)).tasks}
    assert {row["name"]: (row["dense"], row["sparse"]) for row in json.loads(done.out)["tasks"]} == reported


def test_an_export_answers_alike(weightpager: Command, camera_bundle: Path, frame: Path, tmp_path: Path) -> None:
    assert weightpager("export", camera_bundle, "--task", "colour", "--out", tmp_path / "out").code == 0
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")
    plain = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    pixels = processor(images=Image.open(frame), return_tensors="pt")
    with wp.Engine.from_pretrained(camera_bundle) as engine, torch.inference_mode():
        with engine.task("colour") as module:
            found = module(**engine.image_processor()(images=Image.open(frame), return_tensors="pt")).logits
        assert torch.allclose(plain(**pixels).logits, found, atol=0.02)


def test_a_task_is_added(camera_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(camera_bundle, tmp_path / "camera.bundle")
    new = {"green": tiny.pictures(tmp_path, "green", ["green", "white"])}
    content = {"model": str(tiny.vit(tmp_path / "vit")), "training": {"steps": 4, "batch": 8}, "tasks": new}
    grown = wp.compile(task_file.from_dict(content), out=tmp_path / "grown.bundle", base=tmp_path / "camera.bundle")
    assert list(grown.tasks) == ["colour", "warm", "bright", "green"]
    assert grown.task("green").max_length is None


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("preprocessor_config.json", '"height": 16', '"height": 1999999', "expected sizes of 1 to 2048"),
        ("preprocessor_config.json", '"do_resize"', '"auto_map": {}, "do_resize"', "auto_map"),
    ],
)
def test_a_hostile_processor_is_refused(
    camera_bundle: Path, tmp_path: Path, file: str, old: str, new: str, expected: str
) -> None:
    shutil.copytree(camera_bundle, tmp_path / "x.bundle")
    path = tmp_path / "x.bundle" / "model" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    bundle = Bundle.open(tmp_path / "x.bundle")
    bundle.manifest.files[f"model/{file}"] = hash_file(path)
    with pytest.raises(BundleFormatError, match=expected):
        image_reader(bundle)


JUNK = [
    None,
    -1,
    0,
    0.5,
    10**9,
    "16",
    "nan",
    [],
    [16],
    {},
    {"height": 16},
    {"shortest_edge": 16},
    {"max_pixels": 9},
    True,
]
SETTINGS = ["size", "resample", "rescale_factor", "image_mean", "image_std", "do_resize", "image_processor_type"]


@settings(max_examples=25)
@given(st.sampled_from([*SETTINGS, "crop_size", "do_center_crop", "do_pad", "pad_size"]), st.sampled_from(JUNK))
def test_any_settings_give_pixels_or_an_error(camera_bundle: Path, key: str, value: object) -> None:
    name = "model/preprocessor_config.json"
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(camera_bundle, folder, dirs_exist_ok=True)
        path = Path(folder) / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
        bundle = Bundle.open(folder)
        bundle.manifest.files[name] = hash_file(path)
        frame = tiny.picture(Path(folder) / "frame.png", "red")
        with suppress(BundleFormatError, ImageError):
            assert image_reader(bundle).read(frame).shape == (3, 16, 16)
