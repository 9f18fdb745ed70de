"""Rows on demand: how often held-out texts find their rows in memory, and what a forward costs.

    python -m benchmarks.rows ~/.cache/weightpager/demo/KEY/aligned.bundle --other german.txt --json

The bundle's tasks read the held-out texts that its manifest names. A bundle whose tables are whole is measured as if it
had been compiled with ``rows: on-demand``: its training texts lie beside the held-out ones. Two engines take turns,
one with all rows in memory and one with at most a quarter of the tables' bytes; reads go past the page cache.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from msgspec.structs import replace
from safetensors.torch import load_file, save

from weightpager.backends.torch.architecture import tokenizer
from weightpager.bundle import Bundle, BundleWriter, EvalData
from weightpager.bundle.files.entry import check_file
from weightpager.bundle.footprint import whole_rows
from weightpager.bundle.format.names import RESIDENT
from weightpager.bundle.held_out_places import held_out_file
from weightpager.compiler.packing.rows import LEAST_BYTES, RowUses, write_rows
from weightpager.compiler.repack import repack
from weightpager.config import EngineConfig
from weightpager.engine import Engine

WORDS = "base_model.embeddings.word_embeddings.weight"
MIXED = 8
"""Texts of one task, then of another."""

Text = list[int]


def main(
    bundle: Annotated[Path, typer.Argument(help="Whose tasks read texts.")],
    other: Annotated[Path | None, typer.Option(help="Text in another language, a line each.")] = None,
    texts: Annotated[int, typer.Option(help="Of each task, to time forwards with.")] = 60,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure hit rates and forwards."""
    with _with_rows(bundle) as opened:
        found = measure(opened, other, texts)
    if json_:
        typer.echo(json.dumps(found, indent=1))
    else:
        for key, value in found.items():
            typer.echo(f"{key} = {value}")


def measure(bundle: Bundle, other: Path | None, texts: int) -> dict[str, Any]:
    """All figures, by flat keys."""
    reader = tokenizer(bundle)
    held_out = {task: _tokens(reader, _texts(_held_out(bundle, entry.eval), entry.eval.text), entry.max_length)
                for task, entry in bundle.tasks.items() if entry.eval is not None}  # fmt: skip
    quarter = sum(entry.bytes for entry in bundle.manifest.row_tables) // 4
    found: dict[str, Any] = {"rows.quarter_bytes": quarter, "rows.all_bytes": whole_rows(bundle)}
    streams = {**held_out, "mixed": _mixed(held_out)}
    if other is not None:
        streams["other_language"] = _tokens(reader, [x for x in other.read_text("utf-8").splitlines() if x.strip()], 64)
    for name, stream in streams.items():
        found[f"rows.hit_rate.{name}"] = _hit_rate(bundle, quarter, stream)
    found["rows.hit_rate.mean_of_tasks"] = statistics.fmean(found[f"rows.hit_rate.{task}"] for task in held_out)
    task = next(iter(held_out))
    for size, pad in ((1, 0), (16, 64)):
        found |= _forwards(bundle, quarter, task, streams["mixed"], size, pad, texts)
    return found


def _hit_rate(bundle: Bundle, room: int, stream: Sequence[Text]) -> float:
    """Of look-ups that texts make one after the other, in an engine that was just opened."""
    with Engine(bundle, EngineConfig(rows=room, backend="torch")) as engine:
        cache = engine._open.rows.caches[WORDS]
        for text in stream:
            ids = np.array(text)
            cache.look_up(ids, np.empty((len(ids), cache.entry.columns), np.float32))
        return round(cache.report.hits / cache.report.lookups, 4)


def _forwards(
    bundle: Bundle, room: int, task: str, stream: Sequence[Text], size: int, pad: int, count: int
) -> dict[str, float]:
    """Medians of forwards of so many texts, with all rows in memory and with few, taking turns."""
    name = f"rows.forward.{size}x{pad or 'text'}"
    drawn = random.Random(0)
    with (
        Engine(bundle, EngineConfig(backend="torch")) as whole,
        Engine(bundle, EngineConfig(rows=room, backend="torch")) as few,
    ):
        modules = [engine.activate(task) for engine in (whole, few)]
        times: list[list[float]] = [[], []]
        for number in range(count + 3):
            some = drawn.sample(list(stream), size)
            inputs = _padded([(text * 64)[:pad] if pad else text for text in some])
            for which in (0, 1) if number % 2 else (1, 0):
                begun = time.perf_counter()
                with torch.inference_mode():
                    modules[which](**inputs)
                if number >= 3:
                    times[which].append(time.perf_counter() - begun)
        rows = few.report().rows
    medians = [statistics.median(each) * 1e3 for each in times]
    more = statistics.median(b - a for a, b in zip(*times, strict=True)) * 1e3
    faults = rows.faults / (count + 3) if rows else 0.0
    return {f"{name}.all_rows_ms": medians[0], f"{name}.quarter_ms": medians[1], f"{name}.more_ms": more,
            f"{name}.more_share": more / medians[0], f"{name}.faults": faults}  # fmt: skip


def _padded(texts: Sequence[Text]) -> dict[str, torch.Tensor]:
    longest = max(map(len, texts))
    ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    return {"input_ids": ids, "attention_mask": mask}


def _mixed(held_out: dict[str, list[Text]]) -> list[Text]:
    """All texts, some of one task after some of another."""
    drawn = random.Random(0)
    pieces = [texts[at : at + MIXED] for texts in held_out.values() for at in range(0, len(texts), MIXED)]
    drawn.shuffle(pieces)
    return [text for piece in pieces for text in piece]


def _held_out(bundle: Bundle, data: EvalData) -> Path:
    found = held_out_file(bundle, data)
    assert found is not None, f"{data.file} is not on this machine"
    return found


def _texts(path: Path, column: str) -> list[str]:
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [" ".join(row[column]) if isinstance(row[column], list) else row[column] for row in rows]


def _tokens(reader: Any, texts: list[str], length: int | None) -> list[Text]:
    found: list[Text] = reader(texts, truncation=True, max_length=length or 64)["input_ids"]
    return found


@contextmanager
def _with_rows(path: Path) -> Iterator[Bundle]:
    """The bundle, or one like it whose words come on demand."""
    bundle = Bundle.open(path)
    if bundle.row_tables:
        yield bundle
        return
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        changed = Path(folder) / "rows.bundle"
        repack(path, changed)
        _cut_words(Bundle.open(changed))
        yield Bundle.open(changed)


def _cut_words(bundle: Bundle) -> None:
    reader, manifest = tokenizer(bundle), bundle.manifest
    values = load_file(check_file(bundle.path, RESIDENT, bundle.entry(RESIDENT)))
    table = values.pop(WORDS)
    assert 2 * table.numel() >= LEAST_BYTES
    counts, texts = {}, {}
    for task, entry in bundle.tasks.items():
        assert entry.eval is not None
        train = _tokens(reader, _texts(_held_out(bundle, entry.eval).with_name("train.jsonl"), entry.eval.text), 64)
        counts[task] = np.bincount(np.concatenate(train), minlength=len(table)).astype(np.float64)
        texts[task] = len(train)
    writer = BundleWriter(bundle.path)
    written = write_rows(writer, {WORDS: RowUses.of(counts, texts, table.shape[1])}, {WORDS: table}, bundle.page_bytes)
    writer.put(RESIDENT, save(values))
    writer.put_index(bundle.pages.with_rows(written.ids))
    writer.finish(replace(manifest, row_files=written.files, row_tables=written.entries))


if __name__ == "__main__":
    typer.run(main)
