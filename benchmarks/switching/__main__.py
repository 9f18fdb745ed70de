"""Task switches: how fast a differential set is loaded, against a plain read of as many bytes and a whole reload.

    python -m benchmarks.switching --json switching.json

Random weights of real shapes; direct reads, so that the page cache plays no part. The rivals take turns.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import nn

from benchmarks import row_file
from weightpager.bundle import Bundle
from weightpager.bundle.footprint import footprint
from weightpager.bundle.report.page_statistics import overlap
from weightpager.config import EngineConfig, cache_dir
from weightpager.engine import Engine
from weightpager_lab.switching import RawReads, sparse_checkpoint, time_whole_read
from weightpager_lab.synthetic_bundle import bundle_of, half_billion, many_pages

SHARES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6)
"""Of the working set that a budget has room for."""


TOKENS = 32
"""In the prompt of the first output: about as much to compute as there is to load."""


@dataclass(frozen=True)
class Row:
    """One switch, or with ``from_task`` and ``to_task`` "all" a round through all tasks. None where not measured.

    Attributes:
        model: whose shape the weights have.
        budget: bytes; that of the whole bundle, or less.
        from_task, to_task: the pair.
        bytes: loaded.
        cpu, command, commit: where the row comes from.
        overlap: share of the next task's kept bytes that the one before keeps too.
        load_ms: from planning to the last page checked and in place.
        load_gbps: of those bytes.
        direct_gbps: of a plain sequential direct read of as many bytes, by as many threads, nothing checked.
        raw_ms: the same reads by eight plain native threads, every page hashed.
        over_raw: ``load_ms`` over that.
        whole_ms: to read all of the next task's kept blocks from a file of their own.
        resident_p99_ms: of switches that have nothing to load.
        first_output_ms: from an empty arena to the logits of a prompt, loading while it runs.
        compute_ms: of the same prompt with all pages in place.
        logits: tokens of the prompt whose logits are computed; a continuation needs those of the last one.
    """

    model: str
    budget: int
    from_task: str
    to_task: str
    bytes: int
    cpu: str
    command: str
    commit: str
    overlap: float | None = None
    load_ms: float | None = None
    load_gbps: float | None = None
    direct_gbps: float | None = None
    raw_ms: float | None = None
    over_raw: float | None = None
    whole_ms: float | None = None
    resident_p99_ms: float | None = None
    first_output_ms: float | None = None
    compute_ms: float | None = None
    logits: int | None = None


def main(
    json: Annotated[Path, typer.Option(help="File to write the rows to.")],
    repeats: Annotated[int, typer.Option(help="Times that each switch is measured.")] = 5,
    folder: Annotated[Path | None, typer.Option(help="Where the synthetic bundles are kept.")] = None,
    only_first_output: Annotated[bool, typer.Option(help="Measure nothing but the first output.")] = False,
) -> None:
    """Measure switches."""
    where = folder or cache_dir() / "benchmarks" / "switching"
    model = half_billion()
    bundle = bundle_of(model, where, typer.echo)
    rows: list[Row] = []
    for measured in (
        () if only_first_output else pairs(model.name, bundle, repeats),
        () if only_first_output else rounds(model.name, bundle),
        first_outputs(model.name, bundle, repeats),
        () if only_first_output else residents(where),
    ):
        for row in measured:
            rows.append(row)
            typer.echo(line(row))
    row_file.write(json, rows)


def pairs(model: str, bundle: Bundle, repeats: int) -> Iterator[Row]:
    """Every ordered pair of two tasks, just the first of which is in the arena."""
    shared = overlap(bundle)
    names = list(bundle.tasks)[:3]
    with Engine(bundle, EngineConfig()) as engine, closing(RawReads(bundle)) as raw:
        for a, b in permutations(names, 2):
            missing = np.setdiff1d(bundle.pages_of(b), bundle.pages_of(a), assume_unique=True)
            loads, directs, raws, wholes = [], [], [], []
            with (
                tempfile.TemporaryDirectory(dir=bundle.path.parent) as scratch,
                sparse_checkpoint(bundle, b, Path(scratch)) as whole,
            ):
                for _ in range(repeats):
                    engine.deactivate()
                    engine.evict()
                    engine.activate(a)
                    engine.activate(b)
                    switch = engine.report().switches[-1]
                    loads.append(switch.seconds)
                    directs.append(direct_read(bundle, switch.bytes))
                    raws.append(raw.seconds(missing))
                    wholes.append(time_whole_read(whole, 1, EngineConfig().io_threads)[0])
            load = statistics.median(loads)
            plain = None if None in raws else statistics.median(found for found in raws if found is not None)
            yield _row(
                model, engine, a, b, switch.bytes,
                overlap=round(float(shared[bundle.task_numbers[a], bundle.task_numbers[b]]), 4),
                load_ms=round(1e3 * load, 2),
                load_gbps=round(switch.bytes / load / 1e9, 3),
                direct_gbps=round(switch.bytes / statistics.median(directs) / 1e9, 3),
                raw_ms=None if plain is None else round(1e3 * plain, 2),
                over_raw=None if plain is None else round(load / plain, 3),
                whole_ms=round(1e3 * statistics.median(wholes), 2),
            )  # fmt: skip


def rounds(model: str, bundle: Bundle) -> Iterator[Row]:
    """A round through all tasks, over and over, under budgets that have room for less and less of what they need."""
    names = list(bundle.tasks)
    fixed = footprint(bundle).total
    least = max(len(bundle.pages_of(name)) for name in names)
    for share in SHARES:
        slots = max(least, round(share * len(bundle.pages)))
        with Engine(bundle, EngineConfig(fixed + slots * bundle.page_bytes)) as engine:
            for name in names * 2:
                engine.activate(name)
            start, read = time.perf_counter(), engine.report().bytes_read
            for name in names * 2:
                engine.activate(name)
            seconds, count = time.perf_counter() - start, engine.report().bytes_read - read
            yield _row(
                model, engine, "all", "all", count,
                load_ms=round(1e3 * seconds, 2),
                load_gbps=round(count / seconds / 1e9, 3),
            )  # fmt: skip


def first_outputs(model: str, bundle: Bundle, repeats: int) -> Iterator[Row]:
    """From nothing to a first output, loading while the model runs; and loading and running by themselves."""
    for logits in (1, TOKENS):
        yield first_output(model, bundle, repeats, logits)


def first_output(model: str, bundle: Bundle, repeats: int, logits: int) -> Row:
    """To the logits of so many tokens, the last ones. Torch computes: its module is asked for no others."""
    name = next(iter(bundle.tasks))
    prompt = torch.randint(0, 1000, (1, TOKENS))
    inputs: dict[str, object] = {"input_ids": prompt, "use_cache": False, "logits_to_keep": logits}
    loads, computes, both = [], [], []
    with Engine(bundle, EngineConfig(backend="torch")) as engine:
        for _ in range(repeats + 1):
            engine.deactivate()
            engine.evict()
            start = time.perf_counter()
            module = engine.activate(name)
            loads.append(time.perf_counter() - start)
            computes.append(timed_forward(module, inputs))
            engine.deactivate()
            engine.evict()
            start = time.perf_counter()
            timed_forward(engine.activate(name, wait=False), inputs)
            both.append(time.perf_counter() - start)
        count = len(bundle.pages_of(name)) * bundle.page_bytes
        load, compute, overlapped = (1e3 * statistics.median(seconds[1:]) for seconds in (loads, computes, both))
        return _row(
            model, engine, "none", name, count,
            load_ms=round(load, 2), compute_ms=round(compute, 2), first_output_ms=round(overlapped, 2),
            logits=logits,
            load_gbps=round(count / load / 1e6, 3),
        )  # fmt: skip


def timed_forward(module: nn.Module, inputs: dict[str, object]) -> float:
    """Seconds of one forward."""
    start = time.perf_counter()
    with torch.inference_mode():
        module(**inputs)
    return time.perf_counter() - start


def residents(folder: Path) -> Iterator[Row]:
    """Switches without a load, where there are many pages and tasks."""
    crowd = many_pages()
    yield resident(crowd.name, bundle_of(crowd, folder, typer.echo))


def resident(model: str, bundle: Bundle, switches: int = 3000) -> Row:
    """Switches between tasks that are all in the arena."""
    names = list(bundle.tasks)
    seconds = []
    with Engine(bundle, EngineConfig()) as engine:
        for name in names:
            engine.activate(name)
        for number in range(switches):
            start = time.perf_counter()
            engine.activate(names[number * 7 % len(names)])
            seconds.append(time.perf_counter() - start)
        p99 = statistics.quantiles(seconds, n=100)[98]
        return _row(model, engine, "all", "all", 0, resident_p99_ms=round(1e3 * p99, 4))


def direct_read(bundle: Bundle, count: int) -> float:
    """Seconds to read as many bytes one behind the other from the bundle's first page file."""
    path = bundle.path / bundle.manifest.page_file_names()[0]
    return time_whole_read(path, 1, EngineConfig().io_threads, limit=count)[0]


def line(row: Row) -> str:
    """A row for people."""
    facts = asdict(row).items()
    found = {key: value for key, value in facts if value is not None and key not in ("cpu", "command", "commit")}
    return "  ".join(f"{key} {value}" for key, value in found.items())


def _row(model: str, engine: Engine, a: str, b: str, count: int, **measured: Any) -> Row:
    origin = row_file.origin("benchmarks.switching")
    return Row(model, engine.report().budget, a, b, count, **origin, **measured)


if __name__ == "__main__":
    typer.run(main)
