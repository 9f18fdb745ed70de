"""Traces are what they say: reproducible, of known entropy, and as hard to predict as that."""

from __future__ import annotations

import io
import math
import tarfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks.prediction import FirstOrderPredictor, FrequencyPredictor
from weightpager.errors import ConfigError
from weightpager.runtime.prediction.markov import MarkovPredictor
from weightpager.runtime.prediction.planner import CallablePredictor
from weightpager.runtime.prediction.predictor import PredictionScore, TransitionPredictor
from weightpager.trace_file import Visit, read_trace, write_trace
from weightpager.transitions import Transitions
from weightpager_lab.trace import TASKS, in_place_of
from weightpager_lab.traces import FLIP, TRACES, Trace, read_mail, successors

MADE = sorted(TRACES.keys() - {"mail"})
PREDICTABLE = ("assistant", "drive", "robot")


def score(predictor: TransitionPredictor, trace: Trace, skip: int = 0) -> PredictionScore:
    number = {task: index for index, task in enumerate(trace.tasks)}
    found = PredictionScore()
    for step, visit in enumerate(trace.visits):
        if step > skip:
            found.add(predictor.forecast(trace.visits[step - 1].start), number[visit.task])
        predictor.observe(number[visit.task], visit.start)
    return found


@pytest.mark.parametrize("name", MADE)
def test_a_trace_is_reproducible_and_well_formed(name: str) -> None:
    trace = TRACES[name](3000, dwell=0.25, seed=3)
    assert trace.visits == TRACES[name](3000, dwell=0.25, seed=3).visits
    assert trace.visits != TRACES[name](3000, dwell=0.25, seed=4).visits
    assert len(trace.visits) == 3001
    assert len(set(trace.tasks)) == len(trace.tasks) >= 16
    assert {visit.task for visit in trace.visits} == set(trace.tasks)
    starts = [visit.start for visit in trace.visits]
    assert starts[0] == 0.0
    assert starts == sorted(starts)
    assert all(a.task != b.task for a, b in pairwise(trace.visits))
    assert starts[-1] / (len(starts) - 1) == pytest.approx(0.25, rel=0.1)


@pytest.mark.parametrize("name", MADE)
def test_a_trace_file_is_what_the_compiler_reads(name: str, tmp_path: Path) -> None:
    trace = TRACES[name](50)
    write_trace(tmp_path / "trace.jsonl", trace.visits)
    assert read_trace(tmp_path / "trace.jsonl", trace.tasks) == [visit.task for visit in trace.visits]


@pytest.mark.slow
def test_entropies() -> None:
    traces = {name: TRACES[name](20_000) for name in MADE}
    for name in ("assistant", "drive"):  # chains of first order
        assert traces[name].first_order_entropy == pytest.approx(traces[name].entropy, abs=0.05)
    for name in PREDICTABLE:
        entropy = traces[name].entropy
        assert entropy is not None
        assert 0.8 <= entropy <= 1.8
    assert traces["random"].entropy == pytest.approx(math.log2(15))
    assert traces["robot"].first_order_entropy > traces["robot"].entropy + 0.4


@pytest.mark.slow
@pytest.mark.parametrize("name", PREDICTABLE)
def test_once_learnt_markov_comes_close_to_the_entropy_and_is_no_worse_than_first_order(name: str) -> None:
    trace = TRACES[name](5000)
    markov = score(MarkovPredictor(len(trace.tasks)), trace, skip=2500)
    first = score(FirstOrderPredictor(len(trace.tasks)), trace, skip=2500)
    assert trace.entropy is not None
    assert markov.log_loss <= trace.entropy + 0.15
    assert markov.log_loss <= first.log_loss + 0.02


@pytest.mark.slow
def test_second_order_pays_where_exceptions_interrupt_a_cycle() -> None:
    trace = TRACES["robot"](3000)
    markov, first = (score(make(16), trace, skip=1000) for make in (MarkovPredictor, FirstOrderPredictor))
    assert markov.log_loss < first.log_loss - 0.3


def test_a_route_beats_what_can_be_learnt() -> None:
    trace = TRACES["drive"](1500)
    assert trace.planner is not None
    planned = CallablePredictor(trace.planner, trace.tasks, MarkovPredictor(len(trace.tasks)), limit=50)
    found = score(planned, trace)
    assert found.hit_rate > 0.93
    assert found.log_loss < 0.5


def test_a_route_that_was_left_says_nothing() -> None:
    planner = TRACES["drive"](100).planner
    assert planner is not None
    assert planner([]) == {}
    assert planner([Visit("toll", 0.0), Visit("parking", 1.0)]) == {}


@pytest.mark.slow
def test_what_was_learnt_is_wrong_on_the_adversarial_trace() -> None:
    trace = TRACES["adversarial"](4000)
    uniform = math.log2(15)
    assert score(FrequencyPredictor(16), trace).log_loss > uniform - 0.02
    assert score(FirstOrderPredictor(16), trace).hit_rate < 1 / 15
    assert score(MarkovPredictor(16), trace).log_loss < uniform + 0.1  # learning never costs much


def test_the_adversary_keeps_its_rules() -> None:
    trace = TRACES["adversarial"](1000)
    numbers = [TASKS.index(visit.task) for visit in trace.visits]
    counts = np.zeros((16, 16))
    for step, (task, following) in enumerate(pairwise(numbers)):
        allowed = successors(task, night=step // FLIP % 2 == 1)
        assert following in allowed
        assert following != allowed[counts[task, allowed].argmax()]
        counts[task, following] += 1


def test_a_random_walk_is_uniform() -> None:
    trace = TRACES["random"](20_000)
    found = Transitions.from_trace(trace.tasks, [visit.task for visit in trace.visits])
    np.testing.assert_allclose(found.matrix[~np.eye(16, dtype=bool)], 1 / 15, atol=0.03)


@pytest.mark.parametrize(
    ("switches", "dwell"), [(0, 1.0), (5, 0.0), (5, -1.0), (5, math.inf), (5, math.nan), (5, 1e308)]
)
@pytest.mark.parametrize("name", sorted(TRACES))
def test_impossible_sizes_are_refused(name: str, switches: int, dwell: float) -> None:
    with pytest.raises(ConfigError, match="trace: expected"):
        TRACES[name](switches, dwell)


def message(hour: int, *headers: str) -> bytes:
    received = f"Received: from a by b; Mon, 02 Sep 2002 {hour:02}:00:00 +0100"
    return "\n".join([received, *headers, "", "Secret words"]).encode()


def archive(path: Path, mails: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for number, (folder, content) in enumerate(mails):
            info = tarfile.TarInfo(f"package/data/{folder}/{number}.txt")
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def test_mail_becomes_visits_in_order_of_arrival(tmp_path: Path) -> None:
    mails = [
        ("spam-1", message(6, "List-Id: <fork.example.com>")),
        ("easy-ham-1", message(4, "List-Id: Friends <FoRK.example.com>")),
        ("easy-ham-1", message(2, "Subject: hello")),
        ("easy-ham-2", message(3, "List-Id: <fork.example.com>")),
        ("hard-ham-1", message(5, "Mailing-List: list news@example.com; contact news-owner@example.com")),
        ("hard-ham-1", message(8, "Sender: bounce-daily-7@example.com")),
        ("easy-ham-1", b"Date: Mon, 02 Sep 2002 07:00:00 +0100\n\nNo way."),
        ("easy-ham-1", b"Date: never\n\nNo time."),
        ("easy-ham-1", b"Date: Mon, 03 Sep 2001 07:00:00 +0100\n\nLong ago."),
    ]
    trace = read_mail(archive(tmp_path / "mail.tgz", mails), 100, dwell=2.0)
    assert [visit.task for visit in trace.visits] == ["personal", "fork", "news", "spam", "personal", "bounce-daily-7"]
    assert [visit.start for visit in trace.visits] == pytest.approx([0.0, 5 / 3, 5.0, 20 / 3, 25 / 3, 10.0])
    assert len(read_mail(tmp_path / "mail.tgz", 2, dwell=2.0).visits) == 3


@pytest.mark.slow
def test_the_real_mail() -> None:
    trace = TRACES["mail"](5000)
    assert len(trace.tasks) == 16
    assert len(trace.visits) > 1800
    assert {"fork", "ilug", "spam", "personal"} <= set(trace.tasks)
    visits = trace.visits
    assert (visits[-1].start - visits[0].start) / (len(visits) - 1) == pytest.approx(1.0)
    first, markov = (score(make(16), trace) for make in (FirstOrderPredictor, MarkovPredictor))
    assert markov.log_loss < first.log_loss < math.log2(15)


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("tasks", [2, 3, 6, 40])
def test_tasks_that_stand_for_others_leave_as_many_switches_as_long_apart(name: str, tasks: int) -> None:
    visits = in_place_of(TRACES[name], [f"own_{number}" for number in range(tasks)], 500, 2.0)
    assert len(visits) == 501
    assert all(before.task != after.task for before, after in pairwise(visits))
    assert visits[-1].start / 500 == pytest.approx(2.0, rel=0.2)


def test_a_log_that_is_too_short_for_other_tasks_is_taken_as_it_is() -> None:
    log = tuple(Visit(task, float(number)) for number, task in enumerate("abcacb" * 10))
    visits = in_place_of(lambda switches, _: Trace("log", ("a", "b", "c"), log[: switches + 1], None), "xy", 50, 1.0)
    assert len(visits) == 40
    assert visits[-1].start / 39 == pytest.approx(1.0)
