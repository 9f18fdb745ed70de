"""A long prompt read in pieces of several sizes: seconds of one core, the longest step, and memory.

python -m benchmarks.serving.pieces --tokens 8000
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
import typer

from weightpager.answers import model
from weightpager.answers.decoding import GrowingTexts
from weightpager.answers.model import Integers, TaskModel
from weightpager.answers.work import Sampling
from weightpager.backends.torch.torch_model import TorchModel
from weightpager.config import cache_dir, format_size
from weightpager.engine import Engine
from weightpager_lab.synthetic_bundle import bundle_of, long_context

SIZES = (64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Row:
    """Of one size of pieces; at once if None."""

    piece: int | None
    seconds: float
    step: float
    more_bytes: int


def main(
    tokens: Annotated[int, typer.Option(help="Of the prompt.")] = 8000,
    grown: Annotated[int, typer.Option(help="Tokens that it is continued by, one step each.")] = 32,
) -> None:
    """Measure pieces, each size in a process of its own."""
    bundle = bundle_of(long_context(), cache_dir() / "benchmarks" / "serving", typer.echo)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for piece in (*SIZES, None):
            row = pool.apply(measure, (str(bundle.path), piece, tokens))
            typer.echo(
                f"{row.piece or 'at once'}: {row.seconds:.2f} s, longest step {row.step:.2f} s, "
                f"{format_size(row.more_bytes)} more memory"
            )
        for steps in (1, grown):
            seconds = pool.apply(grow, (str(bundle.path), grown, steps))
            typer.echo(f"{grown} tokens in {steps} steps: {seconds:.3f} s")


def measure(path: str, piece: int | None, tokens: int) -> Row:
    """Read a prompt."""
    torch.set_num_threads(1)
    model.PIECE = tokens if piece is None else piece
    if piece is None:
        model.FORWARD_TOKENS, model.ACTIVATION_BYTES = tokens, 2**60
    with (
        Engine.from_pretrained(path, backend="torch") as engine,
        engine.task("task-00") as module,
    ):
        task, ids = TorchModel(module), np.random.default_rng().integers(3, 2000, (1, tokens))
        _read(_begun(task, ids[:, :300]))
        before, start = _most_bytes(), time.process_time()
        longest = _read(_begun(task, ids))
        return Row(piece, time.process_time() - start, longest, _most_bytes() - before)


def grow(path: str, tokens: int, steps: int) -> float:
    """Seconds of a core to continue a short prompt in so many steps."""
    torch.set_num_threads(1)
    with (
        Engine.from_pretrained(path, backend="torch") as engine,
        engine.task("task-00") as module,
    ):
        best = float("inf")
        for _ in range(5):
            ids = np.random.default_rng().integers(3, 2000, (1, 16))
            texts, start = _begun(TorchModel(module), ids), time.process_time()
            for _ in range(steps):
                texts.grow(tokens // steps, _on)
            best = min(best, time.process_time() - start)
        return best


def _begun(task: TaskModel, ids: Integers) -> GrowingTexts:
    return task.grow(ids, np.ones_like(ids), Sampling(), 0)


def _on(tokens: Integers) -> npt.NDArray[np.bool_]:
    """No text is over."""
    return np.zeros(len(tokens), bool)


def _read(texts: GrowingTexts) -> float:
    longest = 0.0
    while True:
        start = time.process_time()
        if unread := texts.unread:
            texts.read_piece()
        else:
            texts.grow(1, _on)
        longest = max(longest, time.process_time() - start)
        if not unread:
            return longest


def _most_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    typer.run(main)
