"""One trace in virtual time: which task runs, what is in memory, what is loaded, and what is waited for.

python -m benchmarks.prefetch.plot --out docs/prediction.svg
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
from matplotlib.axes import Axes

from benchmarks.prefetch.__main__ import Bench
from weightpager.config import cache_dir
from weightpager.runtime.prefetch.virtual_arena import VirtualArena
from weightpager.simulate.simulator import Device
from weightpager_lab.demo.page import svg_rows
from weightpager_lab.synthetic_bundle import assistant_of_many, bundle_of
from weightpager_lab.traces import TRACES

LEARNT, SHOWN = 200, 45
FRACTION = 0.25
_RUNS, _WAITS, _AHEAD = "#0f766e", "#be123c", "#60a5fa"


@dataclass
class Film:
    """What an arena looked like when each task was in place, and when it had run.

    Attributes:
        needs: of each task the pages.
        times: seconds.
        resident: the share of each task's pages that was in memory then.
        ahead: pages prefetched until then.
        waited: pages loaded while a switch waited, until then.
    """

    needs: list[npt.NDArray[np.int64]]
    times: list[float] = field(default_factory=list)
    resident: list[list[float]] = field(default_factory=list)
    ahead: list[int] = field(default_factory=list)
    waited: list[int] = field(default_factory=list)

    def __call__(self, seconds: float, arena: VirtualArena) -> None:
        present = arena.blocks.occupancy().resident
        self.times.append(seconds)
        self.resident.append([float(present[need].mean()) for need in self.needs])
        self.ahead.append(arena.counts.loaded)
        self.waited.append(arena.counts.late + arena.counts.misses)


def main(
    out: Annotated[Path, typer.Option(help="File to write the plot to, as SVG.")],
    folder: Annotated[Path | None, typer.Option(help="Where the synthetic bundle is kept.")] = None,
) -> None:
    """Draw some switches of the assistant's day."""
    bundle = bundle_of(assistant_of_many(), folder or cache_dir() / "benchmarks" / "prefetch", typer.echo)
    bench = Bench(bundle)
    trace, names = bench.trace("assistant", LEARNT + SHOWN), TRACES["assistant"](1).tasks
    film = Film([bundle.pages_of(task) for task in bundle.tasks])
    device = Device(bench.slots(FRACTION), bench.storage)
    bench.simulator.run(trace.visits, device, bench.simulator.learner(bench.storage), watch=film)
    tasks = [bundle.task_numbers[visit.task] for visit in trace.visits]
    size = bundle.page_bytes / 1e6
    out.write_text(svg_rows(lambda rows: draw(rows, film, tasks, names, size), (11, 7.5), (4, 1)), encoding="utf-8")


def draw(rows: Sequence[Axes], film: Film, tasks: Sequence[int], names: Sequence[str], megabytes: float) -> None:
    """The task and what is in memory above; what is prefetched and waited for below.

    Args:
        rows: two axes.
        film: of the whole trace.
        tasks: the visits' tasks.
        names: of the tasks.
        megabytes: of a page.
    """
    above, below = rows
    ready, over = np.array(film.times[0::2]), np.array(film.times[1::2])
    asked = np.concatenate([[0.0], over[:-1]])
    shown = slice(LEARNT, LEARNT + SHOWN)
    edges = np.array(film.times[2 * LEARNT - 1 : 2 * (LEARNT + SHOWN)])
    cells = np.array(film.resident[2 * LEARNT : 2 * (LEARNT + SHOWN)]).T
    above.pcolormesh(edges, np.arange(len(names) + 1) - 0.5, cells, cmap="Blues", vmin=0.4, vmax=1.2, rasterized=True)
    above.hlines(tasks[shown], ready[shown], over[shown], colors=_RUNS, linewidth=5)
    above.hlines(tasks[shown], asked[shown], ready[shown], colors=_WAITS, linewidth=5)
    above.set_yticks(range(len(names)), names)
    above.invert_yaxis()
    width = over[shown] - asked[shown]
    ahead = np.diff(film.ahead)[2 * LEARNT :: 2][:SHOWN] * megabytes
    waited = np.diff(film.waited)[2 * LEARNT - 1 :: 2][:SHOWN] * megabytes
    below.bar(asked[shown], ahead, width, align="edge", color=_AHEAD, label="prefetched")
    below.bar(asked[shown], -waited, width, align="edge", color=_WAITS, label="waited for")
    below.axhline(0, color="#999", linewidth=0.8)
    below.set_ylabel("MB")
    below.set_xlabel("seconds")
    below.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 0.95))


if __name__ == "__main__":
    typer.run(main)
