"""Seven questions about pictures of roads of 224 × 224 pixels: five as `driving` asks them, who walks and who rides.

All pictures are rendered, and answers are what was rendered: an answer may be hidden in a picture by rain or by what
stands before it. Answers begin with a blank, as words behind others do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from inspect import getsource
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from weightpager_lab.samples import road_scene
from weightpager_lab.samples.download import build_once, key_of
from weightpager_lab.samples.recipes import SPLITS, check_sizes, split_sizes
from weightpager_lab.samples.road_scene import LANE, MARKS, PASSERS_BY, Pixels, Scene, Thing
from weightpager_lab.samples.sample import Sample, SampleUnavailable

FRAME = 224
"""Pixels of a picture's side."""

CELL = 28
"""Pixels of the side of a cell: a picture has 8 × 8."""

SEEN = (*MARKS, *PASSERS_BY)
"""What there may be in a cell."""

QUESTIONS = {
    "traffic-light": "Which colour is the traffic light?",
    "vehicle-ahead": "Which vehicle is ahead?",
    "lane-offset": "Where in its lane is the car?",
    "obstacle-distance": "How far is the obstacle?",
    "drivable-area": "Which lanes are free?",
    "person": "Where is a person?",
    "bicycle": "Where is a bicycle?",
}
"""Task → its question."""

ANSWERS = {
    **road_scene.CLASSES,
    "person": ("none", "left", "ahead", "right"),
    "bicycle": ("none", "left", "right"),
}
"""Task → its answers."""

SCENES, HELD_OUT = 8000, 1000
"""To learn from, and in each of the validation and the evaluation split."""


def driving_questions(
    cache: Path, *, train_scenes: int = SCENES, eval_scenes: int = HELD_OUT, report: Callable[[str], None]
) -> list[Sample]:
    """The seven tasks' files in ``cache``, rendered at the first call by as many processes as there are CPUs.

    Rows are ``{"image": …, "prompt": …, "completion": …}``; a picture stands before its prompt. What scene ``n`` of a
    split holds beside passers-by is what the scene of `driving` with the same numbers holds. Needs Pillow; a picture
    takes 110 kB and 35 ms.

    Args:
        cache: a directory, created if need be.
        train_scenes: to learn from.
        eval_scenes: in each of the validation and the evaluation split.
        report: called with a line of text when all has been rendered.

    Raises:
        ConfigError: a size is not positive.
        SampleUnavailable: Pillow isn't installed, a process failed, or the cache cannot be written.
    """
    limits = split_sizes(train_scenes, eval_scenes)
    check_sizes(limits)
    source = [getsource(road_scene), getsource(sys.modules[__name__])]
    target = cache / "samples" / f"driving-questions-{key_of(source=source, limits=limits)}"
    directory = build_once(target, partial(_build, limits, report))
    return [
        Sample(task, "text-generation", (), *(directory / f"{task}.{split}.jsonl" for split in SPLITS))
        for task in QUESTIONS
    ]


def frame(split: int, number: int) -> tuple[dict[str, str], Pixels, npt.NDArray[np.bool_]]:
    """Answers, a picture and what is in each of its cells [64, SEEN]: the same two numbers give the same ones."""
    random = np.random.default_rng([split, number])
    scene, placed = with_passers_by(road_scene.draw(random), np.random.default_rng([split, number, 1]))
    pixels, marks = road_scene.render(scene, random, FRAME, fine=1)
    cells = marks.reshape(FRAME // CELL, CELL, FRAME // CELL, CELL).swapaxes(1, 2).reshape(-1, CELL * CELL)
    seen = np.stack([(cells == 1 + place).any(1) for place in range(len(SEEN))], 1)
    if placed["person"] == "ahead":
        seen[:, SEEN.index("person")] = seen[:, SEEN.index("obstacle")]
    return {**scene.labels(), **placed}, pixels, seen


def with_passers_by(scene: Scene, random: np.random.Generator) -> tuple[Scene, dict[str, str]]:
    """The scene with one person or none and one bicycle or none, and where these are.

    A person who is the scene's obstacle is ahead; nobody else stands in the own lane.
    """
    person = ("none", "left", "right")[int(random.choice(3, p=(0.4, 0.3, 0.3)))]
    bicycle = ("none", "left", "right")[int(random.choice(3, p=(0.34, 0.33, 0.33)))]
    things = []
    if scene.obstacle is not None and scene.obstacle.kind == "person":
        person = "ahead"
    elif person == "left":  # beyond the other lane
        things.append(_thing("person", random, (16.0, 23.0), (-6.6, -5.9)))
    elif person == "right":
        things.append(_thing("person", random, (7.0, 13.0), (2.9, 3.9)))
    traffic = min((thing.distance for thing in scene.scenery if thing.x == -LANE), default=np.inf)
    if bicycle == "left" and traffic < 10:  # a car would hide it
        bicycle = "right"
    if bicycle == "left":  # on the other lane
        things.append(_thing("bicycle", random, (9.0, min(18.0, traffic - 0.5)), (-4.3, -2.7)))
    elif bicycle == "right":
        things.append(_thing("bicycle", random, (6.5, 11.0), (2.2, 2.9)))
    return replace(scene, scenery=(*scene.scenery, *things)), {"person": person, "bicycle": bicycle}


def _thing(
    kind: Literal["person", "bicycle"],
    random: np.random.Generator,
    far: tuple[float, float],
    across: tuple[float, float],
) -> Thing:
    red, green, blue = random.uniform(0.08, 0.85, 3)
    colour = float(red), float(green), float(blue)
    return Thing(kind, float(random.uniform(*far)), float(random.uniform(*across)), colour)


SEEN_FILE = "train.seen.npy"
"""What is in the training pictures' cells, bool [N, 64, SEEN]."""


def picture_name(split: str, number: int) -> str:
    """Of a picture, from the sample's folder."""
    return f"pictures/{split}-{number:05d}.png"


def answers_of(samples: Sequence[Sample], split: str) -> npt.NDArray[np.int64]:
    """Places of a split's answers in `ANSWERS`, [N, tasks]."""
    columns = []
    for sample in samples:
        lines = (sample.train.parent / f"{sample.name}.{split}.jsonl").read_text(encoding="utf-8").splitlines()
        places = [ANSWERS[sample.name].index(json.loads(line)["completion"].strip()) for line in lines]
        columns.append(np.array(places, np.int64))
    return np.stack(columns, 1)


def _build(limits: dict[str, int], report: Callable[[str], None], directory: Path) -> None:
    (directory / "pictures").mkdir()
    for place, split in enumerate(SPLITS):
        parts = _rendered(directory, place, limits[split])
        answers = [row for part in parts for row in json.loads(part.with_suffix(".json").read_text(encoding="utf-8"))]
        for task, question in QUESTIONS.items():
            rows = [
                {"image": picture_name(split, number), "prompt": question, "completion": f" {row[task]}"}
                for number, row in enumerate(answers)
            ]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (directory / f"{task}.{split}.jsonl").write_text(text, encoding="utf-8")
        if split == "train":
            np.save(directory / SEEN_FILE, np.concatenate([np.load(part) for part in parts]))
        for part in parts:
            part.unlink()
            part.with_suffix(".json").unlink()
    report("driving questions: " + ", ".join(f"{split} {size} rendered scenes" for split, size in limits.items()))


def _rendered(directory: Path, place: int, size: int) -> list[Path]:
    """Files of parts of a split, in order, after a process for each has rendered it."""
    count = min(os.cpu_count() or 1, size)
    bounds = [size * worker // count for worker in range(count + 1)]
    parts = [directory / f"part-{worker}.npy" for worker in range(count)]
    # Not multiprocessing: it would run the caller's main module again, or fork a process that has threads.
    commands = [
        [sys.executable, "-m", __name__, str(part), str(place), str(first), str(last)]
        for part, (first, last) in zip(parts, pairwise(bounds), strict=True)
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    processes = [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)  # noqa: S603 - our own
        for command in commands
    ]
    try:
        for process in processes:
            _, said = process.communicate()
            if process.returncode:
                raise SampleUnavailable(f"pictures could not be rendered: {said.strip().splitlines()[-1:]}")
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return parts


def _render_part(part: Path, place: int, first: int, last: int) -> None:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise SampleUnavailable("expected the package 'PIL', found none; install 'weightpager[images]'") from error
    rows, cells = [], []
    for number in range(first, last):
        answers, pixels, seen = frame(place, number)
        # Noise hardly compresses: more than the lowest level takes longer for a tenth of the bytes.
        Image.fromarray(pixels).save(part.parent / picture_name(SPLITS[place], number), compress_level=1)
        rows.append(answers)
        cells.append(seen)
    np.save(part, np.stack(cells))
    part.with_suffix(".json").write_text(json.dumps(rows), encoding="utf-8")


if __name__ == "__main__":
    _render_part(Path(sys.argv[1]), *(int(number) for number in sys.argv[2:]))
