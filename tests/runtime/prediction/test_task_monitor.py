import json

from weightpager.runtime.prediction.task_monitor import TaskMonitor


def monitor(limit: int = 100) -> tuple[TaskMonitor, list[float]]:
    now = [0.0]
    return TaskMonitor(limit, lambda: now[0]), now


def test_repeated_requests_are_one_visit() -> None:
    seen, now = monitor()
    for time, task in ((0.0, "a"), (1.0, "a"), (3.0, "b"), (4.5, "a")):
        now[0] = time
        seen.record(task)
    assert [visit.task for visit in seen.visits()] == ["a", "b", "a"]
    assert seen.requests == {"a": 3, "b": 1}
    assert seen.switches == 2
    assert seen.dwell_seconds() == {"a": [3.0], "b": [1.5]}


def test_history_is_bounded_and_counts_are_not() -> None:
    seen, _ = monitor(limit=2)
    for task in "abcab":
        seen.record(task)
    assert [visit.task for visit in seen.visits()] == ["a", "b"]
    assert seen.switches == 4


def test_the_trace_is_what_a_task_file_reads() -> None:
    seen, _ = monitor()
    seen.record("a")
    assert json.loads(json.dumps(seen.trace())) == [{"task": "a", "time": 0.0}]
