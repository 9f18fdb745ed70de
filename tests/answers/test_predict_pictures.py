"""Prompts with pictures: what is asked of a model, and what is refused before any is decoded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from test_predict import writer

import tiny
import tiny_pictures
import weightpager as wp
from tiny_pictures import IMAGE, content, noise, url
from weightpager.answers import generation
from weightpager.answers.model import TaskModel
from weightpager.answers.predict import UNSTATED, checked, predict, works_of
from weightpager.answers.query import Query, padded
from weightpager.answers.work import Generate, Generated
from weightpager.bundle import TaskEntry
from weightpager.errors import ConfigError, ImageError
from weightpager.readers.tokenizer import Tokenizer

RED, SNOW = 4, 12
PLACES = (IMAGE, IMAGE)


def asked(form: Literal["plain", "chat"], *given: Any, room: int = 64) -> list[Generate]:
    """What inputs ask of a task, after they were checked as often as an engine does."""
    model, reader, task = writer(form, tiny_pictures.reader(tiny_pictures.PARTS))
    task = replace_bos(task)
    model.limits = replace(model.limits, context=room, vocab_size=IMAGE + 1)
    works = list(works_of(model, reader, task, checked(task, checked(task, given)), UNSTATED, None))
    assert all(isinstance(work, Generate) for work in works)
    return works  # type: ignore[return-value]


def replace_bos(task: TaskEntry) -> TaskEntry:
    return TaskEntry(**{**{name: getattr(task, name) for name in task.__struct_fields__}, "add_bos_token": False})


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def said(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def keys(*seeds: int) -> list[bytes]:
    return [tiny_pictures.picture_reader().read(noise(seed)).key for seed in seeds]


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        (wp.PicturePrompt("red", [noise(1), np.array(noise())]), (*PLACES, *PLACES, RED)),
        (wp.PicturePrompt("<image> red <image>", [url(1), content(0)]), (*PLACES, RED, *PLACES)),
    ],
)
def test_a_text_has_pictures(given: Any, ids: tuple[int, ...]) -> None:
    (work,), (talk,) = asked("plain", given), asked("chat", given)
    assert (work.ids, talk.ids) == (ids, (*ids, SNOW))
    for each in (work, talk):
        assert [picture.key for picture in each.pictures] == keys(1, 0)


def test_pictures_may_come_one_by_one() -> None:
    (work,) = asked("plain", wp.PicturePrompt("red", (noise(seed) for seed in (1, 0))))  # type: ignore[arg-type]
    assert [picture.key for picture in work.pictures] == keys(1, 0)


@pytest.mark.parametrize(
    "given",
    [
        [user({"type": "image", "image": url(1)}, said("red"), {"type": "image_url", "image_url": {"url": url(0)}})],
        wp.PicturePrompt([user({"type": "image"}, said("red"), {"type": "image"})], [noise(1), noise(0)]),
        wp.PicturePrompt([user({"type": "image"}, said("red"), {"type": "image", "image": noise()})], [noise(1)]),
    ],
)
def test_a_conversation_has_pictures(given: Any) -> None:
    (work,) = asked("chat", given)
    assert work.ids == (*PLACES, RED, *PLACES, SNOW)
    assert [picture.key for picture in work.pictures] == keys(1, 0)


def test_texts_without_pictures_are_read_beside_others() -> None:
    first, second = asked("plain", "red", wp.PicturePrompt("red", []))
    assert (first.ids, first.pictures) == (second.ids, second.pictures) == ((RED,), ())


@pytest.mark.parametrize(
    ("form", "given", "error", "words"),
    [
        ("plain", wp.PicturePrompt("<image> red", []), ImageError, "text 1 of 1: expected as many .*, 0, found 1;"),
        ("plain", "<image> red", ImageError, "text 1 of 1: expected as many <image> in the text as pictures, 0"),
        ("chat", wp.PicturePrompt("<image> <image>", [noise()]), ImageError, "text 1 of 1: expected as many <image>"),
        ("plain", wp.PicturePrompt("red", ["absent.png"]), ImageError, "text 1 of 1: picture 1 of 1: .*no file at"),
        ("plain", wp.PicturePrompt("red", [5]), ImageError, "picture 1 of 1: expected a picture: .*found 5"),
        ("plain", wp.PicturePrompt("red", ["http://a.example/b"]), ImageError, "nothing is fetched from an address"),
        ("plain", wp.PicturePrompt("red", "a.png"), ConfigError, r"expected a list of pictures, such as \['a.png'\]"),
        ("plain", wp.PicturePrompt("red", np.array(noise())), ConfigError, "expected a list of pictures"),
        ("plain", wp.PicturePrompt("red", None), ConfigError, "expected a list of pictures"),
        ("plain", wp.PicturePrompt(wp.PicturePrompt("red", []), []), ConfigError, "Unicode, found PicturePrompt"),
        ("chat", wp.PicturePrompt(wp.PicturePrompt("red", []), []), ConfigError, "of messages, found PicturePrompt"),
        ("plain", wp.PicturePrompt([user(said("red"))], []), ConfigError, "expected texts in Unicode"),
        ("chat", wp.PicturePrompt([user(said("\udcff"), {"type": "image"})], []), ConfigError, "messages in Unicode"),
        ("chat", [user({"type": "image"}, said("red"))], ImageError, "parts that name none, 1, found 0"),
        ("chat", [user({"type": "image", "image": "a"}, said("<image>"))], ImageError, "text 1 of 1: expected as many"),
        ("plain", wp.PicturePrompt("red", ["absent.png"] * 40), ImageError, "expected at most 31 pictures of 2 tokens"),
        ("plain", wp.PicturePrompt("red", ["absent.png"] * 10**6), ImageError, "at most 31 .*found 1000000"),
    ],
)
def test_other_prompts_are_refused(form: Any, given: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        asked(form, given)


def test_a_prompt_that_is_too_long_costs_no_decoding() -> None:
    given = wp.PicturePrompt("red " * 60, ["absent.png"] * 4)
    with pytest.raises(ConfigError, match="text 1 of 1: expected at most 64 tokens, as the model can read, found 68"):
        asked("plain", given)


def test_who_reads_texts_alone_says_so() -> None:
    model, reader, task = writer("plain", tiny.reader())
    with pytest.raises(ConfigError, match="text 1 of 1: expected texts alone, as the bundle's model reads"):
        predict(model, reader, task, [wp.PicturePrompt("red", [noise()])])
    entry = {"sparsity": 0.5, "dense": None, "eval": None, "max_length": 8}
    other = TaskEntry(name="a", kind="text-classification", classes=["b", "c"], **entry)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="inputs: expected texts in Unicode, found PicturePrompt"):
        checked(other, [wp.PicturePrompt("red", [noise()])])


@pytest.mark.parametrize(
    ("form", "given", "words"),
    [
        (
            "chat",
            [user({"type": "image", "image": noise()}, said("red"))],
            "expected messages with a role and a content",
        ),
        ("plain", wp.PicturePrompt("red", [noise()]), "expected texts in Unicode, found PicturePrompt"),
    ],
)
def test_a_bundle_of_texts_refuses_pictures_before_it_switches(form: Any, given: Any, words: str) -> None:
    _, _, task = writer(form, tiny.reader())
    with pytest.raises(ConfigError, match=f"inputs: {words}"):
        checked(task, [given], pictures=False)


class Told:
    """Ends each query with the number of its pictures."""

    works: list[Generate] = []  # noqa: RUF012

    def __init__(self, model: TaskModel, tokenizer: Tokenizer, queries: list[Query]) -> None:
        self.queries = queries

    def step(self, until: float) -> int:
        for query in self.queries:
            assert isinstance(query.work, Generate)
            self.works.append(query.work)
            query.done(Generated(str(len(query.work.pictures)), 1, "stop"))
        return 0


def test_pixels_of_a_batch_are_the_pictures_of_its_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "GenerationRun", Told)
    monkeypatch.setattr(Told, "works", [])
    model, reader, _ = writer("plain", tiny_pictures.reader())
    pixels = np.stack([tiny_pictures.picture_reader().read(noise(seed)).pixels for seed in (0, 1, 1)])
    batch = {**padded([[IMAGE] * 4 + [RED], [RED], [RED, IMAGE, IMAGE]], 0, left=True), "pixel_values": pixels}
    assert generation.completions(model, reader, batch, 4) == ["2", "0", "1"]
    works = sorted(Told.works, key=lambda work: -len(work.pictures))
    first, second = works[0].pictures
    assert np.array_equal(np.stack([first.pixels, second.pixels]), pixels[:2])
    assert works[1].pictures[0].key == second.key != first.key
    with pytest.raises(ValueError, match="expected prompts with 2 pictures of 2 placeholders each"):
        generation.completions(model, reader, {**batch, "pixel_values": pixels[:2]}, 4)
