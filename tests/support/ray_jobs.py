"""Jobs that workers of a Ray cluster can import: some die, some refuse."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from weightpager.compiler.resume.journal import Done, Job, Key, Value, Workers
from weightpager.errors import BundleFormatError, CompileError
from weightpager.progress import StepProgress, silent


def quiet(_key: object) -> StepProgress:
    """Where jobs tell of their steps, for `Workers.each`: nobody listens."""
    return silent


def doubled(values: Tensor, progress: StepProgress) -> tuple[Tensor, int]:
    """Twice the values, and the process that doubled them."""
    progress(1, 1)
    return values.mul_(2), os.getpid()  # which a worker may: it has a copy


def dies_once(marker: Path, job: Job[Any], progress: StepProgress) -> Any:
    """Kill the worker's process the first time, in the middle of its work."""
    if not marker.exists():
        marker.touch()
        progress(1, 2)
        os.kill(os.getpid(), signal.SIGKILL)
    return job(progress)


def dies(_progress: StepProgress) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refused(text: str, seconds: float, _progress: StepProgress) -> None:
    time.sleep(seconds)
    raise CompileError(text)


def damaged(_progress: StepProgress) -> None:
    raise BundleFormatError("manifest.json", "tasks", 1, 2)


def mistaken(_progress: StepProgress) -> None:
    raise ZeroDivisionError("a mistake")


def waits(marker: Path, _progress: StepProgress) -> None:
    marker.touch()
    time.sleep(600)


def facts(_progress: StepProgress) -> tuple[int, str | None]:
    return torch.get_num_threads(), os.environ.get("WEIGHTPAGER_TESTED")


@dataclass(frozen=True)
class Killing:
    """Workers of which one dies at the first job of the first stage."""

    workers: Workers
    folder: Path

    @property
    def here(self) -> bool:
        return self.workers.here

    def each(
        self, jobs: Mapping[Key, Job[Value]], told: Callable[[Key], StepProgress], copies: int
    ) -> Iterator[Done[Key, Value]]:
        first, marker = next(iter(jobs), None), self.folder / "died"
        mortal = {key: partial(dies_once, marker, job) if key == first else job for key, job in jobs.items()}
        yield from self.workers.each(mortal, told, copies)


def node(_progress: StepProgress) -> str:
    """The machine that it runs on, after a while in which others begin elsewhere."""
    time.sleep(2)
    return str(ray.get_runtime_context().get_node_id())
