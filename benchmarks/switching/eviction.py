"""What is loaded under tight budgets, by which page goes first: nothing is read, only planned.

python -m benchmarks.switching.eviction
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice

import typer

from benchmarks.switching.__main__ import SHARES
from weightpager.bundle import Bundle
from weightpager.config import cache_dir
from weightpager.simulate.simulator import Device, Recency, Simulator
from weightpager.store import StorageModel
from weightpager.trace_file import Visit
from weightpager_lab.synthetic_bundle import bundle_of, half_billion

ROUNDS = 2


def main() -> None:
    """Print a table."""
    bundle = bundle_of(half_billion(), cache_dir() / "benchmarks" / "switching", typer.echo)
    typer.echo(f"MB loaded in {ROUNDS} rounds through {len(bundle.tasks)} tasks\nroom   by recency   by expected reuse")
    least = max(len(bundle.pages_of(task)) for task in bundle.tasks)
    for share in SHARES:
        slots = max(least, round(share * len(bundle.pages)))
        walk = list(islice(cycle(bundle.tasks), 2 * ROUNDS * len(bundle.tasks)))
        recency, reuse = (loaded(bundle, slots, walk, by_reuse=by_reuse) / 1e6 for by_reuse in (False, True))
        typer.echo(f"{share:4.0%} {recency:12.0f} {reuse:19.0f}")


def loaded(bundle: Bundle, slots: int, walk: Sequence[str], *, by_reuse: bool) -> int:
    """Bytes in the second half of a walk; the first fills the arena and tells what follows what."""
    simulator, device = Simulator(bundle), Device(slots, StorageModel())
    uses = simulator.learner(device.storage) if by_reuse else Recency()
    visits = [Visit(task, float(step)) for step, task in enumerate(walk)]
    waits = simulator.run(visits, device, uses, prefetch=False).waits
    return sum(wait.pages for wait in waits[len(walk) // 2 :]) * bundle.page_bytes


if __name__ == "__main__":
    typer.run(main)
