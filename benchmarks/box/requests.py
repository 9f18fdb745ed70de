"""What is asked of a box: bursts of search, writing and questions about frames, drawn from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

import numpy as np
import numpy.typing as npt

from weightpager.bundle import Bundle
from weightpager.bundle.format.manifest import FORMS
from weightpager.engine import Engine, Models

Kind = Literal["search", "writing", "frames", "images"]


@dataclass(frozen=True)
class Habit:
    """How a kind of model is used.

    Attributes:
        burst: fewest and most requests in a row.
        change: probability that one asks another task than the one before.
    """

    burst: tuple[int, int]
    change: float


HABITS: Mapping[Kind, Habit] = {
    "search": Habit((3, 8), 0.4),
    "writing": Habit((1, 3), 0.3),
    "frames": Habit((3, 6), 0.6),
    "images": Habit((3, 6), 0.6),
}
TOKENS = 2
"""Of an answer, as waits are measured and not writing."""

ROUND, STRAY, PAUSE = 12, 0.1, 0.3
"""Requests of a round, the share of requests that aren't its, and seconds between an answer and the next request."""

FRAME = 224
TEXTS = (
    "the red sun sets over the quiet sea",
    "you won a prize , answer today",
    "the minister told the press about the new budget",
    "please write to me when the train is late again",
)
QUESTION = "What is ahead?"


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        bundle, task: that are asked.
        kind: of the bundle.
        number: of its text or frame.
    """

    bundle: str
    task: str
    kind: Kind
    number: int

    @property
    def whole_name(self) -> str:
        return f"{self.bundle}/{self.task}"


def kind_of(bundle: Bundle) -> Kind:
    entry = next(iter(bundle.tasks.values()))
    if FORMS[entry.kind].images:
        return "images"
    if bundle.pictures is not None:
        return "frames"
    return "writing" if entry.writes else "search"


def trace(bundles: Mapping[str, Bundle], count: int, seed: int) -> list[Request]:
    """Bursts of one bundle after another, never of one twice in a row where there are several."""
    random, found, name = Random(seed), list[Request](), ""
    while len(found) < count:
        name = random.choice([other for other in bundles if other != name] or [name])
        kind, tasks = kind_of(bundles[name]), list(bundles[name].tasks)
        habit, task = HABITS[kind], random.choice(tasks)
        for number in range(random.randint(*habit.burst)):
            if number and random.random() < habit.change:
                task = random.choice(tasks)
            found.append(Request(name, task, kind, len(found) // 2))
    return found[:count]


def rounds(bundles: Mapping[str, Bundle], count: int, seed: int) -> list[Request]:
    """A round of `ROUND` requests again and again; one of ten asks any task instead, and the round goes on behind."""
    random, daily = Random(seed), trace(bundles, ROUND, seed)
    tasks = [(name, task, kind_of(bundle)) for name, bundle in bundles.items() for task in bundle.tasks]
    found, place = list[Request](), 0
    for number in range(count):
        if random.random() < STRAY:
            found.append(Request(*random.choice(tasks), number))
        else:
            due = daily[place % ROUND]
            found.append(Request(due.bundle, due.task, due.kind, number))
            place += 1
    return found


def answer(box: Engine | Models, task: str, request: Request) -> None:
    """Have a request answered.

    Args:
        box: that runs its task.
        task: its name there.
        request: this one.
    """
    if request.kind == "frames":
        box.generate(task, QUESTION, [frame(request.number)], max_new_tokens=TOKENS)
        return
    asked = frame(request.number) if request.kind == "images" else TEXTS[request.number % len(TEXTS)]
    box.predict(task, [asked], max_new_tokens=TOKENS if request.kind == "writing" else None)


def frame(number: int) -> npt.NDArray[np.uint8]:
    """A camera's frame [height, width, 3]: noise."""
    return np.random.default_rng(number).integers(0, 256, (FRAME, FRAME, 3), np.uint8)


def opening_bytes(path: Path) -> int:
    """What opening a bundle reads beside pages: parameters, tables, graphs, tokenizer."""
    pages = set(Bundle.open(path).manifest.page_file_names())
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and file.name not in pages)
