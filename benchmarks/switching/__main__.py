"""Task switches: how fast a differential set is loaded, against a plain read of as many bytes and a whole reload.

    python -m benchmarks.switching --json switching.json

Random weights of real shapes; direct reads, so that the page cache plays no part. The rivals take turns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks import row_file
from weightpager.bundle import Bundle
from weightpager.bundle.footprint import footprint
from weightpager.bundle.report.page_statistics import overlap
from weightpager.config import EngineConfig, cache_dir
from weightpager.engine import Engine
from weightpager_lab.direct_reads import RawReads
from weightpager_lab.synthetic_bundle import bundle_of, half_billion, many_pages
from weightpager_lab.timing import (
    in_turns,
    leave_only,
    median_ms,
    raw_reads,
    seconds_of,
    sparse_checkpoint,
    spread,
    time_switch,
    time_whole_read,
)

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
            missing = len(np.setdiff1d(bundle.pages_of(b), bundle.pages_of(a))) * bundle.page_bytes
            with (
                tempfile.TemporaryDirectory(dir=bundle.path.parent) as scratch,
                sparse_checkpoint(bundle, b, Path(scratch)) as whole,
            ):
                beside = raw_reads(raw, bundle, a, b) | {
                    "direct": partial(_read, bundle.path / bundle.manifest.page_file_names()[0], missing),
                    "whole": partial(_read, whole),
                }
                switch = time_switch(engine, a, b, repeats, beside)
            plain = switch.raw_seconds
            yield _row(
                model, engine, a, b, switch.bytes,
                overlap=round(float(shared[bundle.task_numbers[a], bundle.task_numbers[b]]), 4),
                load_ms=round(1e3 * switch.seconds, 2),
                load_gbps=round(switch.bytes / switch.seconds / 1e9, 3),
                direct_gbps=round(switch.bytes / switch.beside["direct"] / 1e9, 3),
                raw_ms=None if plain is None else round(1e3 * plain, 2),
                over_raw=None if plain is None else round(switch.seconds / plain, 3),
                whole_ms=round(1e3 * switch.beside["whole"], 2),
            )  # fmt: skip


def _read(path: Path, limit: int | None = None) -> float:
    """Seconds to read so many bytes one behind the other from the beginning of a file, or all."""
    return time_whole_read(path, 1, EngineConfig().io_threads, limit)[0]


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
            read = engine.report().bytes_read
            seconds = seconds_of(lambda: [engine.activate(name) for name in names * 2])
            count = engine.report().bytes_read - read
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
    with Engine(bundle, EngineConfig(backend="torch")) as engine, torch.inference_mode():

        def load() -> float:
            leave_only(engine)
            return seconds_of(partial(engine.activate, name))

        def overlapped() -> float:
            leave_only(engine)
            return seconds_of(lambda: engine.activate(name, wait=False)(**inputs))

        compute = partial(seconds_of, lambda: engine.activate(name)(**inputs))
        found = in_turns({"load": load, "compute": compute, "both": overlapped}, repeats)
        count = len(bundle.pages_of(name)) * bundle.page_bytes
        load_ms, compute_ms, both_ms = (median_ms(seconds) for seconds in found.values())
        return _row(
            model, engine, "none", name, count,
            load_ms=round(load_ms, 2), compute_ms=round(compute_ms, 2), first_output_ms=round(both_ms, 2),
            logits=logits,
            load_gbps=round(count / load_ms / 1e6, 3),
        )  # fmt: skip


def residents(folder: Path) -> Iterator[Row]:
    """Switches without a load, where there are many pages and tasks."""
    crowd = many_pages()
    yield resident(crowd.name, bundle_of(crowd, folder, typer.echo))


def resident(model: str, bundle: Bundle, switches: int = 3000) -> Row:
    """Switches between tasks that are all in the arena."""
    names = list(bundle.tasks)
    with Engine(bundle, EngineConfig()) as engine:
        for name in names:
            engine.activate(name)
        walk = [names[number * 7 % len(names)] for number in range(switches)]
        found = spread([seconds_of(partial(engine.activate, name)) for name in walk])
        assert found is not None
        return _row(model, engine, "all", "all", 0, resident_p99_ms=round(1e3 * found["p99"], 4))


def line(row: Row) -> str:
    facts = asdict(row).items()
    found = {key: value for key, value in facts if value is not None and key not in ("cpu", "command", "commit")}
    return "  ".join(f"{key} {value}" for key, value in found.items())


def _row(model: str, engine: Engine, a: str, b: str, count: int, **measured: Any) -> Row:
    origin = row_file.origin("benchmarks.switching")
    return Row(model, engine.report().budget, a, b, count, **origin, **measured)


if __name__ == "__main__":
    typer.run(main)
