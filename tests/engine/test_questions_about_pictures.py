"""Questions about pictures: the picture tower runs once for a picture, and answers are those of a fresh engine."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from msgspec.structs import replace

import tiny
import weightpager as wp
from tiny_pictures import answer_of
from weightpager.answers.model import Floats, TaskModel
from weightpager.engine.bundle_change import BundleChange
from weightpager.kernels.choice import NATIVE
from weightpager.readers.image_reader import Frame
from weightpager.readers.tokenizer import Tokenizer
from weightpager.runtime.budget import largest_budget, smallest_budget

BACKENDS = ["torch", *(["native"] if NATIVE else [])]
TASKS = ("animal", "number")
PICTURE = 4 * 48 * 4
"""Bytes of a picture's features."""


def frame(seed: int) -> Frame:
    return np.random.default_rng(seed).integers(0, 256, (30 + seed, 40, 3), np.uint8)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def engine(watcher_bundle: Path, backend: str) -> Iterator[wp.Engine]:
    with wp.load(watcher_bundle, backend=backend) as engine:
        yield engine


def counts(engine: wp.Engine) -> tuple[int, int]:
    """Pictures that were kept and asked for, and those that were computed."""
    features = engine.report().features
    assert features is not None
    return features.hits, features.misses


def test_five_questions_about_a_frame_run_the_tower_once(engine: wp.Engine) -> None:
    seen = frame(1)
    for number, task in enumerate(("animal", "number", "animal", "number", "animal")):
        engine.generate(task, f"red {'cow ' * number}", [seen])
        assert counts(engine) == (number, 1)
    report = engine.report()
    assert report.features is not None
    assert (report.features.kept, report.features.bytes, report.features.evicted) == (1, PICTURE, 0)
    assert report.memory.features == 16 * PICTURE
    assert report.memory.total <= report.budget


def test_a_picture_is_the_same_however_it_comes(engine: wp.Engine, tmp_path: Path) -> None:
    from PIL import Image

    path = tiny.picture(tmp_path / "frame.png", "red", "asked", (40, 33))
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
        sources: list[Any] = [path, str(path), path.read_bytes(), pixels, image.copy()]
    answers = {engine.generate("animal", "one two", [source]).label for source in sources}
    assert len(answers) == 1
    assert counts(engine) == (4, 1)


def test_a_stream_gives_what_generate_gives(engine: wp.Engine) -> None:
    pictures = [frame(1), frame(2)]
    whole = engine.generate("number", "what <image> and <image>", pictures, max_new_tokens=6)
    assert whole.completion == "".join(engine.stream("number", "what <image> and <image>", pictures, max_new_tokens=6))
    assert (
        whole == engine.predict("number", [wp.PicturePrompt("what <image> and <image>", pictures)], max_new_tokens=6)[0]
    )
    assert counts(engine) == (4, 2)


def test_pictures_change_what_is_read(engine: wp.Engine) -> None:
    prompts = [wp.PicturePrompt("red", [frame(seed)]) for seed in range(8)]
    vectors = {found.completion for found in engine.predict("animal", prompts, max_new_tokens=8)}
    assert len(vectors) > 1
    assert engine.predict("animal", ["red", "blue"], batch_size=2) == [
        engine.predict("animal", [text])[0] for text in ("red", "blue")
    ]


def test_prompts_with_and_without_pictures_run_together(engine: wp.Engine) -> None:
    asked: list[Any] = [
        "red",
        wp.PicturePrompt("red", [frame(1)]),
        wp.PicturePrompt("a <image> b <image>", [frame(1), frame(2)]),
    ]
    together = engine.predict("animal", asked, batch_size=3)
    alone = [engine.predict("animal", [one])[0] for one in asked]
    assert [found.tokens for found in together] == [found.tokens for found in alone]
    assert counts(engine) == (1 + 3, 2)


def test_answers_and_features_after_any_sequence_are_those_of_a_fresh_engine(
    watcher_bundle: Path, backend: str
) -> None:
    """Features cached, evicted, dropped and shared between tasks, at budgets in which tasks push each other out."""
    drawn, frames = random.Random(3), [frame(seed) for seed in range(5)]
    asked = [(task, "green one", pictures) for task in TASKS for pictures in ([0], [1], [2, 3], [4, 0, 1], [])]
    fresh = {}
    for number, (task, text, pictures) in enumerate(asked):
        with wp.load(watcher_bundle, backend=backend) as engine:
            fresh[number] = answer_of(engine, task, text, [frames[each] for each in pictures])
    small, large = smallest_budget(wp.Bundle.open(watcher_bundle)), largest_budget(wp.Bundle.open(watcher_bundle))
    with wp.load(watcher_bundle, backend=backend, budget=small) as engine:
        for _ in range(60):
            act = drawn.randrange(8)
            if act == 0:
                engine.set_budget(drawn.choice([small, (small + large) // 2, large - 14 * PICTURE, large]))
            elif act == 1:
                engine.evict()
            elif act == 2:
                engine.reload()
            else:
                number = drawn.randrange(len(asked))
                task, text, pictures = asked[number]
                assert answer_of(engine, task, text, [frames[each] for each in pictures]) == fresh[number]
            report = engine.report()
            assert report.features is not None
            assert report.memory.features is not None
            assert report.features.bytes == report.features.kept * PICTURE <= report.memory.features
            assert report.memory.total <= report.budget
        assert report.features.evicted
        assert report.features.hits


def test_real_time_tasks_in_threads_have_a_frame_computed_once(watcher_bundle: Path, backend: str) -> None:
    with wp.load(watcher_bundle, backend=backend, real_time=TASKS) as engine, ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(engine.generate, TASKS[number % 2], "red", [frame(1)]) for number in range(12)]
        answers = [found.result() for found in asked]
        assert len(set(map(repr, answers[::2]))) == len(set(map(repr, answers[1::2]))) == 1
        assert counts(engine) == (11, 1)


def test_a_repair_and_a_reload_drop_what_was_computed(engine: wp.Engine) -> None:
    engine.generate("animal", "red", [frame(1)])
    assert engine.repair() == []
    assert counts(engine) == (0, 1)
    engine.generate("animal", "red", [frame(1)])
    assert counts(engine) == (1, 1)
    page = int(engine.blocks.resident()[0])
    engine._memory.arena.content(int(engine.blocks.page_table[page]))[3] ^= 1
    assert engine.repair() == [page]
    engine.generate("animal", "red", [frame(1)])
    assert counts(engine) == (1, 2)
    engine.reload()
    engine.generate("animal", "red", [frame(1)])
    assert counts(engine) == (1, 3)


def test_a_repair_that_fails_drops_what_was_computed(engine: wp.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.generate("animal", "red", [frame(1)])

    def repair() -> list[int]:
        raise wp.errors.StoreError("the second of two damaged pages can't be read")

    monkeypatch.setattr(engine._open.page_check, "repair", repair)
    with pytest.raises(wp.errors.StoreError):
        engine.repair()
    engine.generate("animal", "red", [frame(1)])
    assert counts(engine) == (0, 2)


def test_a_closed_engine_keeps_no_features(watcher_bundle: Path) -> None:
    engine = wp.load(watcher_bundle)
    engine.generate("animal", "red", [frame(1)])
    engine.close()
    features = engine.report().features
    assert features is not None
    assert (features.kept, features.bytes) == (0, 0)


def test_a_tower_of_each_task_has_features_of_its_own(watcher_bundle: Path) -> None:
    with wp.load(watcher_bundle) as engine:
        opened, asked = engine._open, list[str]()
        manifest = opened.bundle.manifest
        assert manifest.pictures is not None
        opened.bundle.manifest = replace(manifest, pictures=replace(manifest.pictures, blocks="own"))

        class Numbering:
            """Its features are the number of those that were computed before."""

            def features(self, pixels: Floats, grids: object = None) -> Floats:
                asked.append("")
                return np.full((len(pixels), 4, 48), len(asked), np.float32)

        reader, model = engine.reader(), cast(TaskModel, Numbering())
        assert isinstance(reader, Tokenizer)
        assert reader.pictures is not None
        picture = reader.pictures.read(frame(1))
        found = [engine.features(task)(model, picture)[0, 0] for task in ("animal", "number", "animal", "number")]
        assert found == [1, 2, 1, 2]


@pytest.mark.parametrize(
    ("prompt", "images", "expected"),
    [
        ("a <image> b", [frame(1), frame(2)], "expected as many <image> in the text as pictures, 2"),
        ("a <image> b", [], "expected as many <image> in the text as pictures, 0"),
        ("red", [b"no picture"], "picture 1 of 1: expected an image"),
        ("red", ["nowhere.png"], "picture 1 of 1: expected an image, found no file at nowhere.png"),
        ("red", ["https://example.org/frame.png"], "nothing is fetched from an address"),
        ("red", [np.zeros((0, 4, 3), np.uint8)], "expected a width and a height of at least 1 pixel"),
        ("red", [np.zeros((9, 9), np.uint8)], "expected an array of uint8"),
        ("red", [3], "expected a picture: a file's path"),
        ("red", [frame(1)] * 60, "expected at most 31 pictures of 4 tokens each"),
    ],
)
def test_wrong_pictures_are_refused_before_anything_switches(
    watcher_bundle: Path, prompt: str, images: list[Any], expected: str
) -> None:
    with wp.load(watcher_bundle) as engine:
        with pytest.raises((wp.errors.ConfigError, wp.errors.ImageError)) as refused:
            engine.generate("animal", prompt, images)
        assert expected in str(refused.value)
        assert counts(engine) == (0, 0)


def test_models_of_texts_alone_say_so(writer_bundle: Path) -> None:
    with wp.load(writer_bundle) as engine:
        with pytest.raises(
            wp.errors.ConfigError, match="images: expected none, since the bundle's model reads no pictures"
        ):
            engine.generate("animals", "red", [frame(1)])
        assert engine.report().features is None
        assert engine.report().memory.features is None
        assert (
            engine.generate("animals", "red", max_new_tokens=2)
            == engine.predict("animals", ["red"], max_new_tokens=2)[0]
        )


def test_a_bundle_with_another_tower_is_another_model(watcher_bundle: Path) -> None:
    old, new = wp.Bundle.open(watcher_bundle), wp.Bundle.open(watcher_bundle)
    assert new.manifest.pictures is not None
    new.manifest = replace(new.manifest, pictures=replace(new.manifest.pictures, tokens=5))
    with pytest.raises(wp.errors.BundleError, match="found another pictures"):
        BundleChange.between(old, new)
