"""A compile's per-task work in one process and on a Ray cluster of this machine: how long, and the same bytes.

    OMP_NUM_THREADS=1 python -m benchmarks.ray_compile --json ray_compile.json

Six text tasks on MiniLM. Calibration and measurements are whole, trainings a few steps: these are joint, and done in
one process either way, but the private blocks'. Each worker has a thread and so has the process that is compared with
them. The cluster runs before the clock starts, as one that is shared does; its workers import torch once it runs. What
is compared is every file of the bundles, without what a report says of times and memory.
"""

from __future__ import annotations

import hashlib
import json as json_file
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer

import weightpager as wp
from benchmarks import row_file
from weightpager.bundle.format.names import MANIFEST, MANIFEST_HASH, REPORT
from weightpager.bundle.report.compile_report import read_report
from weightpager.compiler.resume.journal import Done, Job, Key, LocalWorkers, Value, Workers
from weightpager.config import cache_dir
from weightpager.progress import StepProgress
from weightpager.ray.cluster import AUTO, LOCAL, cluster
from weightpager.ray.workers import on_ray
from weightpager_lab.samples.models import minilm
from weightpager_lab.samples.tasks import prepare

WORKERS = 2
PER_TASK = ("measure dense", "calibrate", "recover", "controls", "measure sparse")
"""Stages that have work for each task by itself; recovery and controls have joint work, too."""

GOAL = 0.65
"""Share of the serial time that per-task work should take."""

_OF_THE_RUN = ("seconds", "peak_memory", "memory_bound")


@dataclass(frozen=True)
class Row:
    """One way to compile.

    Attributes:
        way: "serial" or "ray".
        workers: processes that did per-task work.
        threads: of each.
        jobs: seconds of all jobs together, as those who did them say.
        waited: seconds that the compile waited for its jobs.
        seconds: of each stage.
        digest: of the bundle's files.
        cpu, command, commit: where the row comes from.
    """

    way: str
    workers: int
    threads: int
    jobs: float
    waited: float
    seconds: dict[str, float]
    digest: str
    cpu: str
    command: str
    commit: str


def main(
    json: Annotated[Path, typer.Option(help="File to write the rows to.")],
    items: Annotated[int, typer.Option(help="Held-out items of each task.")] = 500,
    train_items: Annotated[int, typer.Option(help="Items of each task to learn and calibrate from.")] = 2000,
    calibration: Annotated[int, typer.Option(help="Items of each task to calibrate on.")] = 256,
    steps: Annotated[int, typer.Option(help="Of each training.")] = 12,
) -> None:
    """Compile twice and compare."""
    samples, missing = prepare(cache_dir(), train_items=train_items, eval_items=items, report=typer.echo)
    for one in missing:
        typer.echo(f"left out: {one}")
    content = {
        "model": str(minilm(cache_dir())),
        "sparsity": 0.75,
        "dtype": "int8",
        "alignment": 0.5,
        "calibration": {"items": calibration, "max_length": 64, "batch": 32},
        "training": {"steps": steps, "batch": 16},
        "recover": {"method": "finetune", "steps": steps, "batch": 16, "private_blocks": 0.1, "private_steps": steps},
        "compare": "dense",
        "tasks": {sample.name: sample.entry() for sample in samples},
    }
    rows = [_row("serial", content, LocalWorkers(), 1)]
    typer.echo(_line(rows[0]))
    with _cluster() as workers:
        rows.append(_row("ray", content, workers, WORKERS))
    typer.echo(_line(rows[1]))
    row_file.write(json, rows)
    ratio = rows[1].waited / rows[0].waited
    same = rows[0].digest == rows[1].digest
    equal = "equal" if same else "DIFFER"
    typer.echo(f"per-task work takes {ratio:.2f} of the serial time (goal {GOAL}); bundles {equal}")
    if not same:
        raise SystemExit("the bundles differ")


@contextmanager
def _cluster() -> Iterator[Workers]:
    """A cluster of this machine, apart from any other, that has its workers."""
    with cluster(LOCAL, num_cpus=WORKERS), on_ray(AUTO) as workers:
        yield workers


class _Timed:
    """Workers, and how long they took."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self.jobs = self.waited = 0.0

    @property
    def here(self) -> bool:
        return self._workers.here

    def each(
        self, jobs: Mapping[Key, Job[Value]], told: Callable[[Key], StepProgress], copies: int
    ) -> Iterator[Done[Key, Value]]:
        """See `Workers.each`; what the compile does with a job's value isn't counted."""
        found = self._workers.each(jobs, told, copies)
        while True:
            start = time.perf_counter()
            done = next(found, None)
            self.waited += time.perf_counter() - start
            if done is None:
                return
            self.jobs += done.seconds
            yield done


def _row(way: str, content: dict[str, Any], workers: Workers, count: int) -> Row:
    timed = _Timed(workers)
    with TemporaryDirectory() as folder:
        bundle = wp.compile(content, Path(folder, "a.bundle"), cache=False, workers=timed)
        seconds, digest = read_report(bundle).seconds, _digest(bundle.path)
    origin = row_file.origin("benchmarks.ray_compile")
    return Row(way, count, torch.get_num_threads(), timed.jobs, timed.waited, seconds, digest, **origin)


def _digest(bundle: Path) -> str:
    """Of all files, without what tells of the run: in the report, and hashes of the report."""
    found = hashlib.blake2b()
    for path in sorted(path for path in bundle.rglob("*") if path.is_file()):
        name, content = str(path.relative_to(bundle)), path.read_bytes()
        if name == REPORT:
            fields = json_file.loads(content)
            content = json_file.dumps({key: value for key, value in fields.items() if key not in _OF_THE_RUN}).encode()
        elif name == MANIFEST:
            fields = json_file.loads(content)
            del fields["files"][REPORT]
            content = json_file.dumps(fields).encode()
        elif name == MANIFEST_HASH:
            continue
        found.update(f"{name} {len(content)}\n".encode() + content)
    return found.hexdigest()[:32]


def _line(row: Row) -> str:
    stages = ", ".join(f"{name} {row.seconds[name]:.1f}" for name in PER_TASK)
    return (
        f"{row.way:6} {row.workers} × {row.threads} threads: waited {row.waited:6.1f} s for jobs of {row.jobs:6.1f} s; "
        f"stages: {stages}; whole compile {sum(row.seconds.values()):.1f} s"
    )


if __name__ == "__main__":
    typer.run(main)
