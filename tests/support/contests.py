"""A contest with made-up values, for tests of what is computed from one."""

from __future__ import annotations

from typing import Any

from weightpager.bundle.report.compile_report import ControlScore, TaskScore
from weightpager_lab.contest.result import Contest, Facts, Found, Limits, ProcessMemory, Row, Sample, Visit

TASKS = ["a", "b"]


def found(ready: float | None, *, paged: int = 100, forward: float = 0.001, backend: str = "torch") -> Found:
    samples = [
        Sample(from_task=x, to_task=y, ready=ready, first_output=(ready or 0) + forward, bytes=4096)
        for x, y in (TASKS, TASKS[::-1], TASKS, TASKS[::-1])
    ]
    visits = [Visit(task=t, waited=ready or 0, bytes=1, weight_bytes=paged, process_bytes=1000) for t in TASKS]
    memory = ProcessMemory(weights=paged + 50, paged=paged, resident=2000, proportional=1500, anonymous=900)
    return Found(
        samples=samples,
        cold_note="",
        visits=visits,
        memory=memory,
        forwards=[forward] * 3,
        tokens=32,
        kernel="avx2",
        torch_threads=2,
        paced=False,
        backend=backend,
    )


def row(method: str, what: Found | None, **changes: Any) -> Row:
    status = "measured" if what is not None else "skipped"
    plain = Row(method=method, label=f"the {method}", room=1.0, budget=1, status=status, peak_memory=5000, found=what)
    return plain.model_copy(update=changes)


def contest(*rows: Row, **changes: Any) -> Contest:
    facts = Facts(
        name="made-up.bundle",
        model="Bert",
        random_weights=False,
        tasks=TASKS,
        sparsity=0.75,
        overlap=[[1.0, 0.6], [0.8, 1.0]],
        mean_overlap=0.7,
        dtype="bfloat16",
        block="16x32",
        page_bytes=4096,
        page_fill=0.9,
        dense_bytes=400,
        dense_bf16_bytes=400,
        largest_task_bytes=100,
        kept_bytes=500,
        stored_bytes=180,
        table_bytes=20,
        resident_bytes=30,
        private_bytes=5,
        planned=[[0, 4096], [8192, 0]],
    )
    plain = Contest(
        facts=facts,
        limits=Limits(memory=2**30, storage=None, cpus=2),
        rows=list(rows),
        scores=[
            TaskScore(name=task, metric="accuracy", dense=0.9, sparse=0.88, density=0.25, items=10) for task in TASKS
        ],
        scores_from="the compile",
        controls=[ControlScore(name="shared mask", resident_bytes=100, scores={"a": 0.8, "b": 0.9})],
        compile_seconds={"calibrate": 50.0, "align": 2.0, "pack": 1.0, "measure sparse": 3.0},
        alignment_gap=0.001,
        repeats=2,
        seed=0,
        quick=False,
        command="weightpager bench made-up.bundle",
        machine={"cpu": "a CPU", "commit": "abc", "versions": {"torch": "2"}},
        load=0.1,
        seconds=1.0,
        figures={},
    )
    return plain.model_copy(update=changes)
