"""What is loaded under tight budgets, by which page goes first: nothing is read, only planned.

python -m benchmarks.eviction
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice

import numpy as np
import typer

from benchmarks.switching import SHARES
from weightpager.bundle import Bundle
from weightpager.config import cache_dir
from weightpager.lab.synthetic_bundle import bundle_of, half_billion
from weightpager.runtime.planning.block_manager import BlockManager
from weightpager.runtime.prefetch.reuse import expected_reuse

ROUNDS = 2


def main() -> None:
    """Print a table."""
    bundle = bundle_of(half_billion(), cache_dir() / "benchmarks" / "switching", typer.echo)
    typer.echo(f"MB loaded in {ROUNDS} rounds through {len(bundle.tasks)} tasks\nroom   by recency   by expected reuse")
    for share in SHARES:
        slots = round(share * len(bundle.pages))
        walk = list(islice(cycle(range(len(bundle.tasks))), 2 * ROUNDS * len(bundle.tasks)))
        recency, reuse = (loaded(bundle, slots, walk, by_reuse=by_reuse) / 1e6 for by_reuse in (False, True))
        typer.echo(f"{share:4.0%} {recency:12.0f} {reuse:19.0f}")


def loaded(bundle: Bundle, slots: int, walk: Sequence[int], *, by_reuse: bool) -> int:
    """Bytes in the second half of a walk; the first fills the arena and tells what follows what."""
    tasks = len(bundle.tasks)
    needs = [bundle.pages_of(name) for name in bundle.tasks]
    blocks = BlockManager(needs, len(bundle.pages), slots)
    switches = np.zeros((tasks, tasks), np.int64)
    pages, current = 0, None
    for step, task in enumerate(walk):
        if task == current:
            continue
        if current is not None:
            switches[current, task] += 1
        reuse = expected_reuse(switches, task) if by_reuse else None
        moved, current = switch(blocks, task, current, reuse), task
        pages += moved if step >= len(walk) // 2 else 0
    return pages * bundle.page_bytes


def switch(blocks: BlockManager, task: int, leaving: int | None, reuse: np.ndarray | None) -> int:
    """Pages that a switch loads, in the two phases that an engine makes of it."""
    before = len(blocks.missing(task))
    blocks.hold(task)
    while not blocks.is_resident(task):
        plan = blocks.plan(task, leaving, None if reuse is None else lambda: reuse)
        assert plan is not None
        if not len(plan.prepare) and leaving is not None:
            blocks.release(leaving)
            leaving = None
            continue
        blocks.evict(plan.evict)
        blocks.publish(blocks.reserve(plan.prepare))
    if leaving is not None:
        blocks.release(leaving)
    return before


if __name__ == "__main__":
    typer.run(main)
