"""Rendered roads: the same from the same numbers, never shared, and as their labels say."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from weightpager_lab.samples.road_scene import CLASSES, MARKS, SIDE, Pixels, Scene, Signal, Thing, draw, render

EMPTY = Scene(
    daytime="day", rain=0.0, fog=0.002, offset=0.0, bend=0.0, signal=None, vehicle=None, obstacle=None,
    closed=(), barriers=(), scenery=(), grain=0.0,
)  # fmt: skip


def seen(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    return render(scene, np.random.default_rng(0))


def picture(split: int, number: int) -> tuple[Scene, Pixels, Pixels]:
    random = np.random.default_rng([split, number])
    scene = draw(random)
    return scene, *render(scene, random)


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
