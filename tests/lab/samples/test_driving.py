"""Rendered roads: the same from the same numbers, never shared, and as their labels say."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, ViTForImageClassification

from json_lines import rows
from weightpager.compiler import task_file
from weightpager.errors import ConfigError
from weightpager_lab.samples.driving import driving, images, picture, road_model
from weightpager_lab.samples.road_scene import CLASSES, MARKS, SIDE, Scene, Signal, Thing, draw, render
from weightpager_lab.samples.sample import Sample

EMPTY = Scene(
    daytime="day", rain=0.0, fog=0.002, offset=0.0, bend=0.0, signal=None, vehicle=None, obstacle=None,
    closed=(), barriers=(), scenery=(), grain=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return driving(tmp_path_factory.mktemp("cache"), train_scenes=6, eval_scenes=3, report=lambda _: None)


def seen(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    return render(scene, np.random.default_rng(0))


def test_the_same_numbers_give_the_same_picture() -> None:
    first, again, other = picture(0, 7), picture(0, 7), picture(1, 7)
    assert first[0] == again[0]
    assert np.array_equal(first[1], again[1])
    assert first[0] != other[0]
    assert first[1].shape == (SIDE, SIDE, 3)
    assert first[1].dtype == np.uint8


def test_pictures_are_those_of_the_published_figures() -> None:
    digest = hashlib.sha256()
    for number in range(4):
        for part in picture(0, number)[1:]:
            digest.update(part.tobytes())
    assert digest.hexdigest() == "d96ea0e5861b6b7ca536f858bdfe7862e44746900d3f7effc3304f0131589c12"


def test_another_size_shows_the_same() -> None:
    scene = replace(EMPTY, vehicle=Thing("truck", 8.0, 0.0, (0.9, 0.1, 0.1)))
    small, large = seen(scene), render(scene, np.random.default_rng(0), 128, fine=1)
    assert large[0].shape == (128, 128, 3)
    assert np.array_equal(large[1][::2, ::2], small[1])


def test_every_class_is_drawn_often() -> None:
    random = np.random.default_rng(0)
    labels = [draw(random).labels() for _ in range(2000)]
    for task, classes in CLASSES.items():
        counts = Counter(label[task] for label in labels)
        assert set(counts) == set(classes)
        assert min(counts.values()) > 2000 / len(classes) / 2


def test_labels_follow_from_the_scene() -> None:
    scene = replace(
        EMPTY,
        offset=0.7,
        signal=Signal("amber", 20.0, overhead=False),
        vehicle=Thing("truck", 20.0, 0.0, (0.5, 0.5, 0.5)),
        obstacle=Thing("box", 12.0, 0.5, (0.5, 0.4, 0.2)),
        closed=(-1,),
    )
    assert scene.labels() == {
        "traffic-light": "amber",
        "vehicle-ahead": "truck",
        "lane-offset": "right",
        "obstacle-distance": "middle",
        "drivable-area": "own",
    }
    assert set(EMPTY.labels().values()) == {"none", "centre", "both"}


@pytest.mark.parametrize(("light", "strongest"), [("red", 0), ("green", 1)])
def test_a_light_shines_in_its_colour(light: str, strongest: int) -> None:
    pixels, marks = seen(replace(EMPTY, daytime="night", signal=Signal(light, 14.0, overhead=False)))  # type: ignore
    lamp = pixels[marks == 1 + MARKS.index(light)]
    assert len(lamp) > 4
    assert lamp.mean(0).argmax() == strongest


def test_what_is_nearer_hides_what_is_behind() -> None:
    far, near = (Thing("truck", at, 0.0, (0.9, 0.1, 0.1)) for at in (30.0, 6.0))
    alone = (seen(replace(EMPTY, vehicle=far))[1] == 1 + MARKS.index("truck")).sum()
    wall = Thing("house", 5.0, 0.0, (0.5, 0.5, 0.5))
    assert alone > 4
    assert (seen(replace(EMPTY, vehicle=near))[1] == 1 + MARKS.index("truck")).sum() > 4 * alone
    assert not (seen(replace(EMPTY, vehicle=far, scenery=(wall,)))[1] == 1 + MARKS.index("truck")).any()


def test_the_camera_moves_with_the_car() -> None:
    def edge(offset: float) -> int:
        """Column of the right edge's mark near the camera."""
        row = seen(replace(EMPTY, offset=offset))[0][SIDE - 30].astype(int).sum(1)
        return int(row[SIDE // 2 :].argmax())

    assert edge(1.0) < edge(0.0) < edge(-0.6)


def test_files_of_the_tasks(samples: list[Sample]) -> None:
    assert [sample.name for sample in samples] == list(CLASSES)
    pictures = [
        {row["image"] for row in rows(path)} for path in (samples[0].train, samples[0].validation, samples[0].eval)
    ]
    assert [len(names) for names in pictures] == [6, 3, 3]
    assert len(set.union(*pictures)) == 12
    for sample in samples:
        assert {row["image"] for row in rows(sample.train)} == pictures[0]
        assert {row["label"] for row in rows(sample.train)} <= set(sample.classes)
        assert sample.entry()["kind"] == "image-classification"
    assert np.array_equal(images(samples[0].train.parent, ["pictures/train-00002.png"])[0], picture(0, 2)[1])


def test_a_larger_sample_contains_the_smaller_one(samples: list[Sample], tmp_path: Path) -> None:
    larger = driving(tmp_path, train_scenes=8, eval_scenes=3, report=lambda _: None)
    assert rows(larger[0].train)[:6] == rows(samples[0].train)


def test_sizes_are_positive(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="size of validation: expected at least 1, got 0"):
        driving(tmp_path, eval_scenes=0, report=lambda _: None)


@pytest.mark.slow
def test_a_model_is_trained_once(samples: list[Sample], tmp_path: Path) -> None:
    folder = road_model(tmp_path, samples, steps=2, report=lambda _: None)
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert road_model(tmp_path, samples, steps=2, report=lambda _: None) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    assert "Trained here, from random weights" in (folder / "README.md").read_text()
    model = ViTForImageClassification.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    inputs = processor(images=picture(0, 0)[1], return_tensors="pt")
    assert torch.isfinite(model(**inputs).logits).all()
    tasks = {sample.name: sample.entry() for sample in samples}
    assert task_file.from_dict({"model": str(folder), "tasks": tasks}).takes_images
