"""Five labelled tasks on the same pictures of roads. All of them are rendered: no photograph, no real road."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from weightpager_lab.samples.download import build_once, key_of
from weightpager_lab.samples.items import SPLITS, check_sizes, split_sizes
from weightpager_lab.samples.road import road_picture, road_scene
from weightpager_lab.samples.sample import Sample, SampleUnavailable


def driving(
    cache: Path, *, train_scenes: int = 4000, eval_scenes: int = 1000, report: Callable[[str], None]
) -> list[Sample]:
    """The five tasks' files in ``cache``, rendered at the first call.

    Scene ``n`` of a split is drawn from the two numbers (split, n): splits never share one, and a larger size only adds
    some. Needs Pillow.

    Args:
        cache: a directory, created if need be.
        train_scenes: to learn from.
        eval_scenes: in each of the validation and the evaluation split.
        report: called with a line of text when all has been rendered.

    Raises:
        ConfigError: a size is not positive.
        SampleUnavailable: Pillow isn't installed, or the cache cannot be written.
    """
    limits = split_sizes(train_scenes, eval_scenes)
    check_sizes(limits)
    sources = [inspect.getsource(module) for module in (road_scene, road_picture)]
    target = cache / "samples" / f"driving-{key_of(source=sources, limits=limits)}"
    directory = build_once(target, partial(_build, limits, report))
    return [
        Sample(task, "image-classification", classes, *(directory / f"{task}.{split}.jsonl" for split in SPLITS))
        for task, classes in road_scene.CLASSES.items()
    ]


MARKS_FILE = "train.marks.npz"
"""What is to be seen where in the training pictures, ``marks`` [N, SIDE, SIDE] as `render` has them."""


def picture(split: int, number: int) -> tuple[road_scene.Scene, road_picture.Pixels, road_picture.Pixels]:
    """A scene, how it looks, and what is to be seen where: the same two numbers give the same pixels."""
    random = np.random.default_rng([split, number])
    scene = road_scene.draw(random)
    return scene, *road_picture.render(scene, random)


def images(folder: Path, names: Sequence[str]) -> road_picture.Pixels:
    """Pictures of a sample's folder, [N, SIDE, SIDE, 3]."""
    from PIL import Image

    pictures = []
    for name in names:
        with Image.open(folder / name) as image:
            pictures.append(np.asarray(image))
    return np.stack(pictures)


def _build(limits: dict[str, int], report: Callable[[str], None], directory: Path) -> None:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise SampleUnavailable("expected the package 'PIL', found none; install 'weightpager[images]'") from error
    (directory / "pictures").mkdir()
    marks = []
    for place, split in enumerate(SPLITS):
        rows: dict[str, list[str]] = {task: [] for task in road_scene.CLASSES}
        for number in range(limits[split]):
            scene, pixels, seen = picture(place, number)
            if split == "train":
                marks.append(seen)
            name = f"pictures/{split}-{number:05d}.png"
            Image.fromarray(pixels).save(directory / name)
            for task, label in scene.labels().items():
                rows[task].append(json.dumps({"image": name, "label": label}) + "\n")
        for task, lines in rows.items():
            (directory / f"{task}.{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    np.savez_compressed(directory / MARKS_FILE, marks=np.stack(marks))
    report("driving: " + ", ".join(f"{split} {size} rendered scenes" for split, size in limits.items()))
