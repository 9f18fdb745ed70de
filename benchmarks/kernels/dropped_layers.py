"""A task without a quarter of a decoder's layers, beside one that keeps as many bytes of all layers.

    python -m benchmarks.kernels.dropped_layers

Random weights in SmolLM2-135M's shape, int4, native code: keys and values of a token, tokens a second behind a short
and a long text, and the reading of texts. Both tasks are of one bundle and take turns.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from transformers import LlamaConfig

from benchmarks.report.tables import table
from weightpager.answers.model import TaskModel
from weightpager.answers.work import GREEDY
from weightpager.blocks import BlockShape
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.training.masks import Keep
from weightpager.engine import Engine
from weightpager_lab.synthetic_bundle import drawn, model_of_few_numbers, source_of, write_source

LAYERS, DROPPED = 30, 8
DECODED = 32
SHORT, LONG = 16, 2048


def main(repeats: Annotated[int, typer.Option(help="Times that everything is measured.")] = 7) -> None:
    """Measure both tasks."""
    config = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=LAYERS, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=49152, max_position_embeddings=8192, tie_word_embeddings=True, dtype=torch.bfloat16,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = model_of_few_numbers(config, 2**25)
        source = source_of(model, ["layers", "blocks"], folder, BlockShape(16, 32), units="layer")
        write_source(source, _masks(source), folder / "bundle", DROPPED / LAYERS, "int4")
        del model, source
        with Engine.from_pretrained(folder / "bundle", backend="native") as engine:
            typer.echo(_page(engine, repeats))


def _masks(source: DenseModel) -> Keep:
    """Eight layers without blocks, spread among the others; and as large a share of every layer."""
    random, gone = np.random.default_rng(0), set(np.linspace(2, LAYERS - 2, DROPPED).astype(int).tolist())
    masks = {}
    for info in source.paged:
        count = info.grid.count
        kept = round((1 - DROPPED / LAYERS) * count)
        some = drawn(count, kept, 0, 1, random)[:, 0]
        masks[info.name] = np.stack([np.full(count, info.layer not in gone), some], 1)
    return masks


def _page(engine: Engine, repeats: int) -> str:
    models, found = {task: engine.model(task) for task in engine.bundle.tasks}, dict[tuple[str, str], list[float]]()
    for _ in range(repeats):
        for what, measure in _MEASURES.items():
            for task, model in models.items():
                with engine.task(task):
                    found.setdefault((what, task), []).append(measure(model))
    lines = [["keys and values of a token, bytes", *_of(models, lambda model: model.cache.token_bytes)]]
    for what in _MEASURES:
        dropped, over_all = (statistics.median(found[what, task]) for task in models)
        spans = [f"{statistics.median(of):.2f} ({min(of):.2f} to {max(of):.2f})" for of in _series(found, what, models)]
        lines.append([what, *spans, f"{dropped / over_all:.2f}"])
    return table(["", "a quarter of the layers dropped", "as many bytes of all layers", "ratio"], lines)


def _series(found: Mapping[tuple[str, str], list[float]], what: str, tasks: Mapping[str, object]) -> list[list[float]]:
    return [found[what, task] for task in tasks]


def _of(models: Mapping[str, TaskModel], figure: Callable[[TaskModel], int]) -> list[str]:
    dropped, over_all = map(figure, models.values())
    return [f"{dropped:,}", f"{over_all:,}", f"{dropped / over_all:.2f}"]


def _reading(tokens: int, model: TaskModel) -> float:
    """Milliseconds until a text has been read."""
    return _run(tokens, 1, model)[0]


def _decoding(tokens: int, model: TaskModel) -> float:
    """Tokens a second behind a text."""
    first, rest = _run(tokens, 1 + DECODED, model)
    return DECODED / rest if first else 0.0


def _run(tokens: int, most: int, model: TaskModel) -> tuple[float, float]:
    """Milliseconds to the first token, and seconds from there on."""
    ids = np.random.default_rng(0).integers(3, model.vocab_size, (1, tokens))
    start = time.perf_counter()
    texts, seen = model.grow(ids, np.ones_like(ids), GREEDY, 0, most), list[float]()

    def see(drawn: np.ndarray[tuple[int], np.dtype[np.int64]]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        seen.append(time.perf_counter())
        return np.zeros(len(drawn), bool)

    while texts.unread:
        texts.read_piece()
    texts.grow(most, see)
    return 1e3 * (seen[0] - start), seen[-1] - seen[0]


_MEASURES: Mapping[str, Callable[[TaskModel], float]] = {
    f"read {SHORT} tokens, ms": lambda model: _reading(SHORT, model),
    f"read {LONG:,} tokens, ms": lambda model: _reading(LONG, model),
    f"tokens a second behind {SHORT}": lambda model: _decoding(SHORT, model),
    f"tokens a second behind {LONG:,}": lambda model: _decoding(LONG, model),
}


if __name__ == "__main__":
    typer.run(main)
