"""Published lists of dropped decoder layers, at their model's shape: switches beside reads of the whole sparse model.

    python -m benchmarks.published --json docs/published.json

Random weights in the shape of LLaVA-1.6's language model, Vicuna 7B; a task keeps whole layers. Only switches are
timed, in a budget that holds one task, and only paged weights are counted: what all tasks share never leaves memory.
Beside each switch, direct reads of the same page files bring all layers of the next task, and those that the task
before lacks; nothing that they bring is checked or kept. A bundle in bfloat16 takes 11 GB of disk and 8 GB of memory,
one in int4 3 and 3; each is removed once it is measured. Interrupted, the same command goes on.
"""

from __future__ import annotations

import math
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, permutations
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import torch
import typer
from transformers import LlamaConfig

from benchmarks import row_file
from benchmarks.report.tables import table
from weightpager.blocks import BlockShape
from weightpager.bundle import Bundle
from weightpager.bundle.files.new_directory import scratch
from weightpager.bundle.format import page_file
from weightpager.config import EngineConfig, cache_dir, format_size
from weightpager.doctor.cold import cold_read
from weightpager.engine import Engine
from weightpager.errors import WeightpagerError
from weightpager.machine.memory import forget_peak, peak_memory
from weightpager.machine.storage import free_bytes
from weightpager.page_dtype import PageDtype, block_bytes
from weightpager.runtime.budget import smallest_budget
from weightpager_lab.contest.measuring import circuit
from weightpager_lab.contest.rivals.rival import Pace, slow_engines
from weightpager_lab.direct_reads import DirectReader, new_buffer
from weightpager_lab.synthetic_bundle import model_of_few_numbers, source_of, write_source
from weightpager_lab.timing import doubt, leave_only, seconds_of

LAYERS = 32
DROPPED: Mapping[str, Mapping[str, str]] = {
    "published": {
        "car": "13 14 29 26 27 25 21 17 12 20 11 2 9 28 22",
        "light": "29 2 27 13 12 14 25 16 26 21 20 11 17 9 31",
        "obstacle": "16 11 21 25 17 20 12 27 31 9 28 22 7 29 30 2",
        "person": "20 29 16 12 2 9 27 25 17 31 26 10 23 22 24 15",
    },
    "SLEB": {
        "car": "13 8 10 6 2 5 12 20 16 19 25 17 22 23",
        "light": "29 2 9 10 16 25 19 27 21 22",
        "obstacle": "16 11 21 22 23 15 17 19 31 27 30 7",
        "person": "20 18 19 4 6 7 2 17 22 23 13",
    },
}
"""By method, the layers that each task drops, as the authors' public code has them:
HugeRaabbit/On-Demand-Multi-Task-Sparsity-for-Efficient-Large-Model-Deployment-on-Edge-Devices."""

DRIVE = ("car", "light", "car", "obstacle", "person", "obstacle", "car")
"""The published pairs, as a walk that ends where it began."""

DTYPES: Sequence[PageDtype] = ("bfloat16", "int4")
RATES = (300, 0)
BLOCK = BlockShape(16, 32)
EXTENT = 256 << 20


def kept_by(method: str) -> dict[str, frozenset[int]]:
    """The layers that each task keeps."""
    return {
        task: frozenset(range(LAYERS)) - frozenset(map(int, dropped.split()))
        for task, dropped in DROPPED[method].items()
    }


KEPT = kept_by("published")


def counted(kept: Mapping[str, frozenset[int]], a: str, b: str) -> float:
    """Layers of a task over those that a switch to it loads."""
    return len(kept[b]) / len(kept[b] - kept[a])


@dataclass(frozen=True)
class Shape:
    """A decoder's; ``numbers`` are those that its weights are pieces of."""

    name: str
    hidden: int
    ffn: int
    heads: int
    words: int
    page_bytes: int
    numbers: int

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            hidden_size=self.hidden, intermediate_size=self.ffn, num_hidden_layers=LAYERS,
            num_attention_heads=self.heads, vocab_size=self.words, max_position_embeddings=4096, dtype=torch.bfloat16,
        )  # fmt: skip

    def disk_bytes(self, dtype: PageDtype) -> int:
        """About what a bundle takes; layers that all tasks drop aren't in it."""
        layers = len(frozenset().union(*KEPT.values()))
        weights = layers * (4 * self.hidden**2 + 3 * self.hidden * self.ffn)
        return round(1.1 * (weights / BLOCK.size * block_bytes(BLOCK, dtype) + 4 * self.words * self.hidden))


VICUNA = Shape("Vicuna 7B", 4096, 11008, 32, 32000, 1 << 20, 2**27)
QUICK = Shape("quick", 256, 688, 4, 300, 1 << 16, 2**19)


@dataclass(frozen=True)
class Row:
    """One switch, and what was read beside it.

    Attributes:
        shape, dtype: of the bundle.
        rate: megabytes a second of the imitated disk; 0 for the disk as it is.
        from_task, to_task, repeat: which switch.
        counted: layers of the next task over those that the switch loads.
        bytes, whole_bytes: that the switch reads, and of all pages of the next task.
        seconds: of the switch.
        raw_seconds, whole_seconds: of direct reads of as many bytes.
        budget: of the engine.
        writing_peak: most memory of the process that wrote the bundle; None if another one did.
        doubt: why reads may not have been cold; else empty.
        command, commit, cpu: where the row comes from.
    """

    shape: str
    dtype: str
    rate: int
    from_task: str
    to_task: str
    repeat: int
    counted: float
    bytes: int
    whole_bytes: int
    seconds: float
    raw_seconds: float
    whole_seconds: float
    budget: int
    writing_peak: int | None
    doubt: str
    command: str
    commit: str
    cpu: str

    @property
    def key(self) -> tuple[str, str, int, str, str, int]:
        return self.shape, self.dtype, self.rate, self.from_task, self.to_task, self.repeat


def main(
    json: Annotated[Path, typer.Option(help="File of rows; those that it has aren't measured again.")],
    folder: Annotated[Path | None, typer.Option(help="Where bundles are, one at a time.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small shape, to see whether it runs.")] = False,
    dtype: Annotated[list[str] | None, typer.Option(help="Only pages of these dtypes.")] = None,
    rate: Annotated[list[int] | None, typer.Option(help="Only disks of these MB/s; 0 for the disk as it is.")] = None,
    repeats: Annotated[int, typer.Option(help="Of the published pairs; other pairs are measured once.")] = 3,
) -> None:
    """Write and measure a bundle of each dtype."""
    shape, where = QUICK if quick else VICUNA, folder or cache_dir() / "benchmarks" / "published"
    for each in cast("list[PageDtype]", dtype or DTYPES):
        have = {row.key for row in row_file.read(json, Row)}
        rest = {
            one: [step for step in walk(repeats) if (shape.name, each, one, *step) not in have] for one in rate or RATES
        }
        if not any(rest.values()):
            continue
        path, start = where / f"{shape.name.replace(' ', '-')}-{each}.bundle", time.perf_counter()
        peak = None if path.is_dir() else write(shape, each, path)
        typer.echo("it lies there" if peak is None else f"written in {format_size(peak)} of memory")
        bundle = Bundle.open(path)
        for one, steps in rest.items():
            for number, row in enumerate(measured(shape, bundle, one, steps, peak), 1):
                row_file.add(json, [row], Row)
                minutes = (time.perf_counter() - start) / 60
                typer.echo(f"[{each}, {_disk(one)}, {number} of {len(steps)}, {minutes:.0f} min] {line(row)}")
        shutil.rmtree(path)
    typer.echo(page([row for row in row_file.read(json, Row) if row.shape == shape.name]))


def walk(repeats: int) -> list[tuple[str, str, int]]:
    """Every ordered pair once, then the published ones again: each begins where the one before it ended."""
    seen: Counter[tuple[str, str]] = Counter()
    steps = []
    for a, b in [*pairwise(circuit(list(KEPT))), *pairwise(DRIVE * (repeats - 1))]:
        if a != b:  # where the drive begins again
            steps.append((a, b, seen[a, b]))
            seen[a, b] += 1
    return steps


def write(shape: Shape, dtype: PageDtype, path: Path) -> int | None:
    """Write a bundle, a layer at a time; the most memory that took.

    Raises:
        WeightpagerError: the disk has no room for it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    needed, free = shape.disk_bytes(dtype), free_bytes(path)
    typer.echo(f"write {path}, {format_size(needed)} …")
    if free is not None and free < needed:
        raise WeightpagerError(f"{path.parent}: expected {format_size(needed)} of free disk, found {format_size(free)}")
    forget_peak()
    with scratch(path.parent, f".{path.name}.scratch-") as folder:
        model = model_of_few_numbers(shape.config(), shape.numbers)
        source = source_of(model, list(KEPT), folder, BLOCK, rows="resident")
        keep = {
            info.name: np.tile([info.layer in KEPT[task] for task in KEPT], (info.grid.count, 1))
            for info in source.paged
        }
        sparsity = 1 - statistics.fmean(map(len, KEPT.values())) / LAYERS
        write_source(source, keep, path, sparsity, dtype, shape.page_bytes)
    return peak_memory()


def measured(
    shape: Shape, bundle: Bundle, rate: int, steps: Sequence[tuple[str, str, int]], peak: int | None
) -> Iterator[Row]:
    """A row for each switch of a walk, once it is done.

    Raises:
        WeightpagerError: a switch has read something else than the layers that it lacked.
    """
    budget, files = smallest_budget(bundle), [bundle.path / name for name in bundle.manifest.page_file_names()]
    pace, memory = Pace(rate * 1e6) if rate else None, memoryview(new_buffer(EXTENT))
    memory[:] = bytes(EXTENT)  # taken before any clock runs
    with (
        slow_engines(rate * 1e6) if rate else nullcontext(),
        Engine(bundle, EngineConfig(budget)) as engine,
        closing(DirectReader(EngineConfig().io_threads, pace.reading if pace else None)) as reader,
    ):
        for task in KEPT:
            engine.module(task)
        at = None
        for a, b, repeat in steps:
            if at != a:
                leave_only(engine, a)
            lacked = KEPT[b] - KEPT[a]
            runs = {
                "switch": partial(engine.activate, b),
                "raw": partial(read, reader, list(extents(bundle, lacked)), memory),
                "whole": partial(read, reader, list(extents(bundle, KEPT[b])), memory),
            }
            with cold_read(files) as proof:  # each comes first in turn: storage may be faster at what was just read
                seconds = {name: seconds_of(runs[name]) for name in (reversed(runs) if repeat % 2 else runs)}
            engine.evict()
            at, loaded = b, engine.report().switches[-1].bytes
            if loaded != bytes_of(bundle, lacked):
                raise WeightpagerError(f"{a} → {b}: expected {bytes_of(bundle, lacked)} bytes, found {loaded}")
            yield Row(
                shape.name, bundle.manifest.dtype, rate, a, b, repeat, round(counted(KEPT, a, b), 4), loaded,
                bytes_of(bundle, KEPT[b]), seconds["switch"], seconds["raw"], seconds["whole"], budget, peak,
                doubt(proof), **row_file.origin("benchmarks.published"),
            )  # fmt: skip


def bytes_of(bundle: Bundle, layers: Collection[int]) -> int:
    return int(np.isin(bundle.pages.layers, list(layers)).sum()) * bundle.page_bytes


Extent = tuple[Path, int, int]


def read(reader: DirectReader, parts: Sequence[Extent], memory: memoryview) -> int:
    """Read these parts of files, one after the other into the same memory; how many bytes."""
    return sum(reader.read(path, memory, offset, count) for path, offset, count in parts)


def extents(bundle: Bundle, layers: Collection[int]) -> Iterator[Extent]:
    """Where these layers' pages lie: file, offset and bytes, at most `EXTENT`."""
    pages, size = np.flatnonzero(np.isin(bundle.pages.layers, list(layers))), bundle.page_bytes
    for name, first, count in bundle.manifest.page_ranges():
        start = page_file.check(bundle.path / name, count, size)
        own = pages[(pages >= first) & (pages < first + count)] - first
        for run in np.split(own, np.flatnonzero(np.diff(own) != 1) + 1):
            for part in np.split(run, range(EXTENT // size, len(run), EXTENT // size)):
                if len(part):
                    yield bundle.path / name, start + int(part[0]) * size, len(part) * size


def line(row: Row) -> str:
    return (
        f"{row.from_task} → {row.to_task}: {row.seconds:.3g} s, whole {row.whole_seconds:.3g} s, raw "
        f"{row.raw_seconds:.3g} s, {row.whole_seconds / row.seconds:.2f} × of {row.counted:.2f} × {row.doubt}"
    )


Ratios = dict[tuple[str, str], float]
"""By pair."""


def page(rows: Sequence[Row]) -> str:
    """Tables of the dtypes and disks, and of the pairs; empty without rows."""
    if not rows:
        return ""
    pairs = list(dict.fromkeys(pairwise(DRIVE)))
    others = [pair for pair in permutations(KEPT, 2) if pair not in pairs]
    columns = {
        f"counted, {method}": {pair: counted(kept_by(method), *pair) for pair in pairs + others} for method in DROPPED
    }
    promised = columns["counted, published"]
    summary = [_summary(name, found, pairs) + ["–"] * 2 for name, found in columns.items()]
    for dtype, rate in dict.fromkeys((row.dtype, row.rate) for row in rows):
        own = [row for row in rows if (row.dtype, row.rate) == (dtype, rate)]
        name, found = f"{dtype}, {_disk(rate)}", _medians(own, lambda row: row.whole_seconds / row.seconds)
        over_counted = statistics.fmean(ratio / promised[pair] for pair, ratio in found.items())
        over_raw = statistics.fmean(_medians(own, lambda row: row.seconds / row.raw_seconds).values())
        columns[name] = found
        summary.append([*_summary(name, found, pairs), f"{over_counted:.2f}", f"{over_raw:.2f}"])
    each = [
        [" → ".join(pair), *(f"{found[pair]:.2f}" if pair in found else "–" for found in columns.values())]
        for pair in pairs + others
    ]
    header = ["times faster", "published pairs", "best of them", "all pairs", "over counted", "time over raw reads"]
    doubts = dict.fromkeys(f"Not proved cold: {row.doubt}." for row in rows if row.doubt)
    return "\n\n".join([table(header, summary), table(["switch", *columns], each), *doubts])


def _summary(name: str, found: Ratios, pairs: Sequence[tuple[str, str]]) -> list[str]:
    own = [found[pair] for pair in pairs if pair in found] or [math.nan]
    return [name, f"{statistics.fmean(own):.2f}", f"{max(own):.2f}", f"{statistics.fmean(found.values()):.2f}"]


def _medians(rows: Sequence[Row], ratio: Callable[[Row], float]) -> Ratios:
    """Over the repeats of each pair."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        found.setdefault((row.from_task, row.to_task), []).append(ratio(row))
    return {pair: statistics.median(ratios) for pair, ratios in found.items()}


def _disk(rate: int) -> str:
    return f"{rate} MB/s" if rate else "disk as it is"


if __name__ == "__main__":
    typer.run(main)
