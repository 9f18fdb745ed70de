"""Sequences of task switches to try prediction on: made ones with a known entropy, and a real log."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from email.message import Message
from email.parser import BytesHeaderParser
from email.utils import mktime_tz, parsedate_tz
from pathlib import Path
from typing import Protocol

import numpy as np

from weightpager.config import cache_dir
from weightpager.trace_file import Visit, merged
from weightpager_lab.samples.download import fetch, members
from weightpager_lab.samples.pins import SPAM_ASSASSIN
from weightpager_lab.trace import TASKS, Chain, Trace, check_size, random

ASSISTANT = Chain(
    {
        "wake_word": {"transcribe": 1.0},
        "transcribe": {"intent": 0.9, "translate": 0.1},
        "intent": {
            "music": 0.26,
            "weather": 0.18,
            "mail": 0.16,
            "search": 0.14,
            "calendar": 0.12,
            "lights": 0.08,
            "chat": 0.06,
        },
        "music": {"wake_word": 0.85, "speak": 0.15},
        "weather": {"speak": 0.92, "calendar": 0.08},
        "mail": {"summarise": 0.6, "reply": 0.2, "spam": 0.2},
        "search": {"rank": 0.9, "speak": 0.1},
        "calendar": {"speak": 0.6, "mail": 0.2, "route": 0.2},
        "lights": {"wake_word": 1.0},
        "chat": {"speak": 1.0},
        "translate": {"speak": 1.0},
        "summarise": {"speak": 0.8, "reply": 0.2},
        "reply": {"grammar": 0.8, "speak": 0.2},
        "grammar": {"speak": 0.6, "mail": 0.4},
        "spam": {"mail": 0.5, "speak": 0.5},
        "rank": {"summarise": 0.7, "speak": 0.3},
        "route": {"speak": 0.8, "calendar": 0.2},
        "speak": {"wake_word": 0.55, "transcribe": 0.35, "chat": 0.1},
    },
    {"wake_word": 6.0, "music": 4.0, "intent": 0.3, ("speak", "wake_word"): 3.0},
)


def assistant(switches: int, dwell: float = 1.0, seed: int = 0) -> Trace:
    """Chains of tasks that begin with a wake word or a follow-up question; the intent is what is hard to foresee."""
    return ASSISTANT.trace("assistant", switches, dwell, seed)


CYCLE = (
    "localise",
    "map",
    "plan",
    "navigate",
    "detect",
    "segment",
    "grasp_pose",
    "grasp",
    "verify",
    "carry",
    "place",
    "report",
)
EXCEPTIONS = {"obstacle": 0.1, "person": 0.05, "listen": 0.04, "recover": 0.03}
AGAIN = 0.1
"""How often an exception leads back to the step that it interrupted, not to the next one."""


def _rows() -> dict[str, dict[str, float]]:
    rows: dict[str, dict[str, float]] = {}
    for number, step in enumerate(CYCLE):
        following = CYCLE[(number + 1) % len(CYCLE)]
        rows[step] = {following: 1.0 - sum(EXCEPTIONS.values())}
        for exception, chance in EXCEPTIONS.items():
            rows[step][f"{exception}/{step}"] = chance
            rows[f"{exception}/{step}"] = {following: 1.0 - AGAIN, step: AGAIN}
    return rows


ROBOT = Chain(_rows(), {"navigate": 3.0, "carry": 2.0, "person": 2.0})


def robot(switches: int, dwell: float = 1.0, seed: int = 0) -> Trace:
    """Twelve steps over and over; four exceptions come in between, after which the cycle goes on where it was.

    Where it was follows from the latest two tasks, not from the latest one.
    """
    return ROBOT.trace("robot", switches, dwell, seed)


SUCCESSORS = 4
FLIP = 100
"""Switches between day and night."""


def adversarial(switches: int, dwell: float = 1.0, seed: int = 0) -> Trace:
    """By day a task has four successors, by night four others; what followed it most often before never comes.

    Of the four it draws one that isn't the commonest yet (of equals, the first). So the successor that counts make the
    likeliest is always wrong, and what was learnt by day is useless by night. ``entropy`` is that of one who knows all
    this: ``log2 3``.
    """
    check_size(switches, dwell)
    draws = np.random.default_rng(seed)
    counts: Counter[tuple[int, int]] = Counter()
    tasks, starts = [0], [0.0]
    for step in range(switches):
        task, candidates = tasks[-1], successors(tasks[-1], night=step // FLIP % 2 == 1)
        seen = {other: counts[task, other] for other in candidates}
        candidates.remove(max(candidates, key=seen.__getitem__))
        following = int(draws.choice(candidates))
        counts[task, following] += 1
        tasks.append(following)
        starts.append(starts[-1] + draws.lognormal(math.log(dwell) - 0.125, 0.5))
    visits = tuple(Visit(TASKS[task], float(start)) for task, start in zip(tasks, starts, strict=True))
    return Trace("adversarial", TASKS, visits, math.log2(SUCCESSORS - 1))


def successors(task: int, *, night: bool) -> list[int]:
    """What may follow a task by day, and what by night."""
    first = 1 + SUCCESSORS * night
    return [(task + step) % len(TASKS) for step in range(first, first + SUCCESSORS)]


DRIVE = Chain(
    {
        "motorway": {"exit": 0.5, "roadworks": 0.2, "tunnel": 0.15, "bridge": 0.15},
        "exit": {"roundabout": 0.4, "junction": 0.6},
        "tunnel": {"motorway": 0.8, "bridge": 0.2},
        "bridge": {"motorway": 0.7, "tunnel": 0.3},
        "roadworks": {"motorway": 0.7, "main_road": 0.3},
        "toll": {"motorway": 1.0},
        "main_road": {"junction": 0.5, "roundabout": 0.2, "crossing": 0.2, "level_crossing": 0.1},
        "junction": {"main_road": 0.5, "residential": 0.35, "toll": 0.15},
        "roundabout": {"main_road": 0.6, "toll": 0.2, "fuel_station": 0.2},
        "crossing": {"main_road": 0.7, "residential": 0.3},
        "level_crossing": {"main_road": 1.0},
        "residential": {"crossing": 0.3, "school_zone": 0.25, "junction": 0.25, "parking": 0.2},
        "school_zone": {"residential": 0.7, "crossing": 0.3},
        "parking": {"manoeuvre": 1.0},
        "manoeuvre": {"residential": 0.8, "parking": 0.2},
        "fuel_station": {"main_road": 0.9, "manoeuvre": 0.1},
    },
    {"motorway": 5.0, "main_road": 2.0, "parking": 0.5},
)

RELIABILITY = 0.95
"""How often the route comes true; else the driver, or the road, decides otherwise."""

_TAIL = 4


class Route:
    """What the navigation says, by the visits so far: a planner for ``CallablePredictor``.

    Args:
        driven: the tasks as they came.
        announced: of each visit, the task that the navigation expected after it.
    """

    def __init__(self, driven: Sequence[str], announced: Sequence[str]) -> None:
        self._driven, self._announced = tuple(driven), tuple(announced)
        self._place = 0

    def __call__(self, visits: Sequence[Visit]) -> Mapping[str, float]:
        """The weight of each task that may come next; empty off the route and at its end."""
        tail = tuple(visit.task for visit in visits[-_TAIL:])
        for place in range(max(self._place, len(tail) - 1), len(self._announced)):
            if tail and self._driven[place + 1 - len(tail) : place + 1] == tail:
                self._place = place
                return _weights(self._driven[place], self._announced[place])
        return {}


def _weights(task: str, announced: str) -> dict[str, float]:
    row = DRIVE.states.matrix[DRIVE.states.tasks.index(task)]
    weights = {other: (1 - RELIABILITY) * float(chance) for other, chance in zip(DRIVE.tasks, row, strict=True)}
    return {**weights, announced: weights[announced] + RELIABILITY}


def _announced(walk: list[int], random: np.random.Generator) -> list[int]:
    """Of each visit but the last, what the navigation expects after it: the truth, or a likely lie."""
    told = random.random(len(walk) - 1) < RELIABILITY
    others = [int(random.choice(len(DRIVE.tasks), p=DRIVE.states.matrix[state])) for state in walk[:-1]]
    return [truth if right else other for truth, right, other in zip(walk[1:], told, others, strict=True)]


def drive(switches: int, dwell: float = 1.0, seed: int = 0) -> Trace:
    """Sixteen kinds of road. Its planner announces the next one, and is right most of the time.

    ``entropy`` is that of one who doesn't know the route.
    """
    check_size(switches, dwell)
    random = np.random.default_rng(seed)
    walk = DRIVE.walk(switches, random)
    visits = DRIVE.visits(walk, dwell, random)
    route = Route([DRIVE.tasks[state] for state in walk], [DRIVE.tasks[state] for state in _announced(walk, random)])
    return Trace("drive", DRIVE.tasks, visits, DRIVE.entropy, route)


SIZE = 16
PERSONAL, SPAM, OTHER = "personal", "spam", "other-lists"
_FROM, _TO = 1_025_481_600, 1_041_379_200  # July to December 2002; what lies outside is sparse


def mail(switches: int, dwell: float = 1.0, seed: int = 0) -> Trace:  # noqa: ARG001 - a log has no seed
    """One task per mailing list, one for personal mail, one for spam: what an assistant that handles each would run.

    Of the archive `SPAM_ASSASSIN` only the short names of lists and the times are used. There
    are about 1,800 switches.

    Raises:
        SampleUnavailable: the archive can't be had.
    """
    check_size(switches, dwell)
    return read_mail(fetch(SPAM_ASSASSIN, cache_dir()), switches, dwell)


def read_mail(archive: Path, switches: int, dwell: float) -> Trace:
    """The trace of an archive of mails; mail of one kind in a row is one visit.

    Times are those of arrival (the topmost ``Received``), scaled to the mean dwell time; nights and pauses stay as
    long, compared with the rest, as they were. Lists beyond the commonest share a task.
    """
    arrivals = sorted(_arrivals(archive))
    common = [name for name, _ in Counter(name for _, name in arrivals).most_common(SIZE - 1)]
    visits = merged(Visit(name if name in common else OTHER, moment) for moment, name in arrivals)
    return Trace("mail", (*common, OTHER), tuple(_scaled(visits[: switches + 1], dwell)), None)


def _scaled(visits: Sequence[Visit], dwell: float) -> Iterator[Visit]:
    """The visits from time 0 on, with this mean dwell time."""
    length = visits[-1].start - visits[0].start if visits else 0.0
    scale = dwell * (len(visits) - 1) / length if length else 0.0
    return (Visit(visit.task, (visit.start - visits[0].start) * scale) for visit in visits)


def _arrivals(archive: Path) -> Iterator[tuple[float, str]]:
    for name, content in members(archive, "package/data/*-ham-?/*.txt", "package/data/spam-?/*.txt"):
        headers = BytesHeaderParser().parsebytes(content)
        moment = _arrival(headers)
        if moment is not None and _FROM <= moment < _TO:
            yield moment, SPAM if "/spam-" in name else _list_of(headers)


def _arrival(headers: Message) -> float | None:
    received = str(headers.get("Received", "")).rpartition(";")[2]
    for text in (received, str(headers.get("Date", ""))):
        parsed = parsedate_tz(text)
        if parsed is not None:
            return float(mktime_tz(parsed))
    return None


def _list_of(headers: Message) -> str:
    """The list's short name, by the headers that lists add."""
    identity = str(headers.get("List-Id", "")).rpartition("<")[2].rstrip("> ")
    posted = str(headers.get("Mailing-List", "")).removeprefix("list ").removeprefix("contact ")
    sender = str(headers.get("Sender", "")).strip('<" ')
    name = identity or posted.partition(";")[0] or (sender if "bounce" in sender else "")
    return name.partition("@")[0].partition(".")[0].lower() or PERSONAL


__all__ = ["TRACES", "Trace", "TraceMaker"]


class TraceMaker(Protocol):
    """Makes a trace: the same one from the same arguments."""

    def __call__(self, switches: int, dwell: float = 1.0, seed: int = 0) -> Trace:
        """A trace.

        Args:
            switches: visits less one; a real log may have fewer.
            dwell: mean length of a visit in seconds.
            seed: of the draws.

        Raises:
            ConfigError: there is no switch, or no time between them.
            SampleUnavailable: a real log cannot be fetched.
        """
        ...


TRACES: Mapping[str, TraceMaker] = {
    "assistant": assistant,
    "drive": drive,
    "robot": robot,
    "mail": mail,
    "random": random,
    "adversarial": adversarial,
}
"""By name; all but `mail` are made up. A new one is a file of its own and a line here."""
