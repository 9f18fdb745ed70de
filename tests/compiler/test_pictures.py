"""Folders and rows of images to batches."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ViTConfig

import tiny
import tiny_models
from weightpager.backends.torch.architecture import TransformersImageReader, load_image_processor
from weightpager.compiler import data, task_file
from weightpager.compiler.model import dense_model
from weightpager.compiler.task_file.sections import TaskSpec
from weightpager.errors import CompileError, ConfigError
from weightpager.readers.image_reader import ImageReader
from weightpager.task_data import images
from weightpager.task_data.held_out import fingerprint


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> ImageReader:
    processor = load_image_processor(tiny.vit(tmp_path_factory.mktemp("vit")))
    return TransformersImageReader(processor, ViTConfig(image_size=16))


def spec(folder: Path, **changes: Any) -> TaskSpec:
    entry = tiny.pictures(folder, "warm", ["red", "blue"], items=8)
    return TaskSpec.model_validate({**entry, "train": Path(entry["train"]), "eval": Path(entry["eval"])} | changes)


def load(task: TaskSpec, reader: ImageReader) -> data.TaskData:
    return data.load("warm", task, reader, data.classes("warm", task), 8)


def rows(path: Path, *rows: dict[str, Any]) -> Path:
    return tiny_models.jsonl(path, rows)


def test_a_folder_for_each_class_and_rows_agree(tmp_path: Path, reader: ImageReader) -> None:
    task = spec(tmp_path)
    found = load(task, reader)
    assert found.classes == ("blue", "red")
    assert [len(split) for split in (found.train, found.eval)] == [8, 8]
    by_rows = [{"image": f"warm/{c}/{n}.png", "label": c} for n, c in enumerate(["red", "blue"] * 4)]
    same = load(task.model_copy(update={"train": rows(tmp_path / "same.jsonl", *by_rows)}), reader)
    assert {(item.path.name, item.label) for item in found.train} == {(i.path.name, i.label) for i in same.train}


@pytest.mark.parametrize("split", ["train", "eval"])
def test_rows_that_hold_images_instead_of_naming_them_are_refused_in_few_words(
    tmp_path: Path, reader: ImageReader, split: str
) -> None:
    held = [{"image": "iVBORw0KGgo" * 1000, "label": label} for label in ("red", "blue")]
    task = spec(tmp_path).model_copy(update={split: rows(tmp_path / "held.jsonl", *held)})
    for look in (lambda: load(task, reader), lambda: images.fingerprint(getattr(task, split), "w", "image", "label")):
        with pytest.raises(CompileError, match="expected an image, found no file at .*iVBORw0KGgo") as refused:
            look()
        assert len(str(refused.value)) < 1500


def test_a_batch_has_pixels_and_labels(tmp_path: Path, reader: ImageReader) -> None:
    found = load(spec(tmp_path), reader)
    batches = found.batches(found.eval, 3)
    assert [batch.items for batch in batches] == [3, 3, 2]
    assert batches[0].inputs["pixel_values"].shape == (3, 3, 16, 16)
    assert batches[0].tokens is None
    reds = batches[0].inputs["pixel_values"][:, 0].flatten(1).median(1).values
    assert (reds > 0).tolist() == [label == 1 for label in batches[0].labels.tolist()]
    assert torch.equal(batches[-1].labels, batches[2].labels)
    assert [batch.items for batch in batches[1:]] == [3, 2]


def test_the_first_items_of_a_folder_are_of_several_classes(tmp_path: Path, reader: ImageReader) -> None:
    task = spec(tmp_path)
    found = load(task.model_copy(update={"eval": task.train, "items": 6}), reader)
    assert len(found.eval) == 6
    assert len({item.label for item in found.eval}) == 2


@pytest.mark.parametrize("named_by", ["folder", "rows"])
def test_images_behind_the_items_are_not_read(tmp_path: Path, reader: ImageReader, named_by: str) -> None:
    task = spec(tmp_path)
    held_out = task.train if named_by == "folder" else task.eval
    order = [path for path, _ in images.listed(held_out, "here", *task.columns)]
    task = task.model_copy(update={"train": shutil.copytree(task.train, tmp_path / "train"), "eval": held_out})
    order[6].write_text("not an image")
    kept = load(task.model_copy(update={"items": 6}), reader).eval
    assert [item.path for item in kept] == order[:6]
    with pytest.raises(CompileError, match="image 7"):
        load(task.model_copy(update={"items": 7}), reader)


def test_other_columns(tmp_path: Path, reader: ImageReader) -> None:
    named = [{"file_name": f"warm/{c}/{n}.png", "colour": c} for n, c in enumerate(["red", "blue"])]
    task = spec(tmp_path, train=rows(tmp_path / "metadata.jsonl", *named), image="file_name", label="colour")
    held_out = [{"file_name": row["file_name"], "colour": row["colour"]} for row in named]
    assert len(load(task.model_copy(update={"eval": rows(tmp_path / "e.jsonl", *held_out)}), reader).train) == 2


def broken_copy(folder: Path, what: str) -> None:
    file = folder / "warm" / "red" / "0.png"
    if what == "cut":
        file.write_bytes(file.read_bytes()[:-30])
    elif what == "text":
        file.write_text("not an image")
    elif what == "other":
        (folder / "warm" / "red" / "notes.txt").write_text("")
    elif what == "one class":
        shutil.rmtree(folder / "warm" / "blue")
    elif what == "flat":
        for path in list((folder / "warm").iterdir()):
            shutil.rmtree(path)
        tiny.picture(folder / "warm" / "0.png", "red")
    elif what == "empty":
        for path in (folder / "warm").rglob("*.png"):
            path.unlink()
    elif what == "size":
        tiny.picture(file, "red", size=(1, 64))


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("cut", r"tasks\.warm\.train .*image \d \(.*red/0\.png\): expected a whole image, found a damaged one"),
        ("text", r"\(.*red/0\.png\): expected an image \(BMP, JPEG, PNG, PPM, WEBP\), found something else"),
        ("other", r"expected files of \.bmp, .*\.webp in .*red, found notes\.txt"),
        ("one class", "expected at least two different labels, found red"),
        ("flat", "expected a folder for each class in it, found none; or name a file of rows"),
        ("empty", "expected at least one image, found empty folders"),
        ("size", "expected sides of at most 1 : 32, found 1 × 64"),
    ],
)
def test_says_what_is_wrong_with_a_folder(tmp_path: Path, reader: ImageReader, what: str, expected: str) -> None:
    task = spec(tmp_path)
    broken_copy(tmp_path, what)
    with pytest.raises(CompileError, match=expected):
        load(task, reader)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"image": "absent.png", "label": "red"}, r"tasks\.warm\.eval .*image 2: .*found no file at .*absent\.png"),
        ({"image": 7, "label": "red"}, "row 2: expected 'image' to be text, found 7|Column\\(/image\\) changed"),
        ({"image": "warm/red/0.png", "label": "green"}, "row 2: expected one of the labels blue, red, found 'green'"),
        ({"picture": "warm/red/0.png", "label": "red"}, "row 2: expected a value for 'image', found none"),
    ],
)
def test_says_what_is_wrong_with_rows(tmp_path: Path, reader: ImageReader, row: dict[str, Any], expected: str) -> None:
    task = spec(tmp_path)
    rows(task.eval, {"image": "warm/red/0.png", "label": "red"}, row)
    with pytest.raises(CompileError, match=expected):
        load(task, reader)


def named(raw: bytes) -> str:
    """A name as it comes from a file system, which takes any bytes."""
    return os.fsdecode(raw)


def test_images_may_have_any_name_and_classes_may_not(tmp_path: Path, reader: ImageReader) -> None:
    task = spec(tmp_path)
    red = Path(task.train) / "red"
    (red / "0.png").rename(red / named(b"caf\xe9.png"))
    assert len(load(task, reader).train) == 8
    fingerprint(task.train, "here", task.kind, task.columns)
    red.rename(red.with_name(named(b"roug\xe9")))
    with pytest.raises(CompileError, match=r"tasks\.warm\.train .*class names in UTF-8, found the folder 'roug"):
        load(task, reader)


@pytest.mark.parametrize("closed", ["warm", "red"])
def test_a_folder_that_may_not_be_read_is_said(
    tmp_path: Path, reader: ImageReader, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    task, whole = spec(tmp_path), Path.iterdir

    def refuse(path: Path) -> Iterator[Path]:
        if path.name == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(CompileError, match=rf"tasks\.warm\.train .*{closed} cannot be read: Permission denied"):
        load(task, reader)


def test_a_fingerprint_is_of_images_and_labels(tmp_path: Path) -> None:
    task = spec(tmp_path)

    def both() -> tuple[str, str]:
        return tuple(fingerprint(path, "here", task.kind, task.columns) for path in (task.train, task.eval))  # type: ignore

    first = both()
    shutil.copytree(tmp_path / "warm", tmp_path / "copy")
    assert images.fingerprint(tmp_path / "copy", "here", "image", "label") == first[0]
    tiny.picture(tmp_path / "warm" / "red" / "0.png", "red", "another")
    tiny.picture(tmp_path / "held-out" / "warm-0.png", "red", "another")
    second = both()
    assert first[0] != second[0]
    assert first[1] != second[1]
    (tmp_path / "held-out" / "warm-0.png").unlink()
    with pytest.raises(CompileError, match="here: expected an image, found no file at"):
        both()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"text": "body"}, "tasks.warm: text makes no sense for image-classification"),
        ({"max_length": 16}, "tasks.warm: max_length makes no sense for image-classification"),
        ({"kind": "text-classification"}, "tasks.warm.train: expected a file, found none at"),
        ({"kind": "text-classification", "train": "warm.eval.jsonl", "eval": "other.jsonl", "image": "a"},
         "tasks.warm: image makes no sense for text-classification"),
        ({"train": "absent"}, "tasks.warm.train: expected a file, found none at"),
    ],
)  # fmt: skip
def test_keys_that_make_no_sense_are_refused(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    content = tiny.camera(tmp_path)
    rows(tmp_path / "other.jsonl", {"text": "a", "label": "b"})
    with pytest.raises(ConfigError, match=expected):
        task_file.from_dict({**content, "tasks": {"warm": content["tasks"]["warm"] | changes}}, tmp_path)


def test_texts_and_images_need_two_models(tmp_path: Path) -> None:
    content = tiny.camera(tmp_path)
    spam = tiny.classification(tmp_path, "spam", {"cat": ["cat"], "dog": ["dog"]})
    with pytest.raises(ConfigError, match="tasks: expected all to read images as colour does, or none"):
        task_file.from_dict({**content, "tasks": {**content["tasks"], "spam": spam}})


def test_a_model_of_images_has_an_image_processor(tmp_path: Path) -> None:
    content = tiny.camera(tmp_path)
    settings = tmp_path / "vit" / "preprocessor_config.json"
    honest = settings.read_text()
    for found, expected in (
        (json.dumps(json.loads(honest) | {"auto_map": {}}), "auto_map asks to run the directory's own code"),
        (honest.replace('"height": 16', '"height": 99999'), "cannot be loaded: expected sizes of 1 to 2048"),
        (honest.replace("ViTImageProcessor", "NoSuchProcessor"), "cannot be loaded"),
    ):
        settings.write_text(found)
        with pytest.raises(CompileError, match=expected):
            dense_model.load(task_file.from_dict(content))
    settings.unlink()
    with pytest.raises(CompileError, match=r"expected an image processor, found no preprocessor_config\.json"):
        dense_model.load(task_file.from_dict(content))


def test_a_model_of_texts_takes_no_images(tmp_path: Path) -> None:
    content = tiny.camera(tmp_path)
    shutil.copy(tmp_path / "vit" / "preprocessor_config.json", tiny.bert(tmp_path / "bert"))
    with pytest.raises(CompileError, match="a head for image-classification, found bert, .* none; it has one"):
        dense_model.load(task_file.from_dict({**content, "model": str(tmp_path / "bert")}))
