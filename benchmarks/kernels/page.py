"""The page ``docs/kernels-measured.md`` from the rows of the kernel benchmarks.

python -m benchmarks.kernels.page --json docs/kernels.json --out docs/kernels-measured.md
"""

from __future__ import annotations

import json as json_file
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.kernels.goals import GOALS, INT8_SPEEDUP, LEAST_SHARE_OF_READ, MOST_TOKENS_IN_FLOAT32, Goal
from benchmarks.kernels.run import Row

_TOP = """# Kernels, measured

Generated from [{json}]({json}) by `python -m benchmarks.kernels.page`, on two cores of an AMD EPYC with AVX-512
BF16, whose speed varied while it was measured, as that of rented machines does. Ratios are dense time over ours, in
one run, the kernels taking turns; every call meets another weight, and a GiB of weights lies between two uses of
one. Each cell is the median over four models' widest layers, with the worst of them in brackets. **Bold** where a
figure that was asked for is missed.

```
python -m benchmarks.kernels --json docs/kernels.json
WEIGHTPAGER_ISA=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python -m benchmarks.kernels --json docs/kernels.json
python -m benchmarks.calls --json docs/kernels.json
python -m benchmarks.generate --json docs/kernels.json
```
"""


_WHOLE = """\
Decoding is timed behind the first token. A dense prefill ends with a copy of the head's weight, which transformers and
torch make; *body* is without the head."""


def main(
    json: Annotated[Path, typer.Option(help="Rows that the kernel benchmarks wrote.")],
    out: Annotated[Path, typer.Option(help="The page to write.")],
) -> None:
    """Write the page."""
    if not json.is_file():
        raise typer.BadParameter(f"expected a file of rows, found nothing at {json}", param_hint="--json")
    rows = [Row(**row) for row in json_file.loads(json.read_text(encoding="utf-8"))]
    out.write_text(page(rows, json.name), encoding="utf-8")


def page(rows: Sequence[Row], json_name: str) -> str:
    """The page's text."""
    parts = [_TOP.format(json=json_name)]
    for isa in sorted({row.isa for row in rows if row.kernel == "paged_linear"}):
        of_isa = [row for row in rows if row.isa == isa and row.kernel == "paged_linear"]
        against = "`torch.nn.functional.linear`" + (" in float32" if of_isa[0].prepacked_ms is None else " in bfloat16")
        parts.append(f"## {isa}, against {against}\n")
        for block in sorted({row.block for row in of_isa}):
            for dtype in sorted({row.dtype for row in of_isa}):
                some = [row for row in of_isa if (row.block, row.dtype) == (block, dtype)]
                parts.append(f"Blocks of {block} in {dtype}\n\n{_speedups(some)}\n")
        parts.append(f"At one token, share of a plain read's bandwidth for as many bytes:\n\n{_bandwidth(of_isa)}\n")
        parts.append(f"At one token, int8 against bfloat16 of the same blocks:\n\n{_int8(of_isa)}\n")
        if of_isa[0].prepacked_ms is not None:
            parts.append(f"Dense, prepacked for its shape, against unpacked:\n\n{_prepacked(of_isa)}\n")
    calls = {row.kernel: row for row in rows if row.kernel in ("module", "alternating")}
    if calls:
        parts.append(f"## Calls\n\n{_calls(calls)}\n")
    whole = [row for row in rows if row.kernel in ("prefill", "body", "decode")]
    if whole:
        parts.append(f"## A whole model, through transformers\n\n{_WHOLE}\n\n{_models(whole)}\n")
    return "\n".join(parts)


def _speedups(rows: Sequence[Row]) -> str:
    tokens = sorted({row.tokens for row in rows})
    prepacked = rows[0].prepacked_ms is not None  # only in bfloat16
    lines = []
    for sparsity in sorted({row.sparsity for row in rows}):
        cells = [f"{sparsity:.0%}"]
        for count in tokens:
            found = [row.speedup for row in rows if (row.sparsity, row.tokens) == (sparsity, count)]
            asked = prepacked or count <= MOST_TOKENS_IN_FLOAT32
            cells.append(_cell(found, GOALS.get((rows[0].dtype, sparsity, count)) if asked else None))
        lines.append(cells)
    return _table(["sparsity", *(f"{count} tokens" for count in tokens)], lines)


def _cell(found: Sequence[float], goal: Goal | None) -> str:
    text = f"{statistics.median(found):.2f} ({min(found):.2f})"
    return f"**{text}**" if goal is not None and statistics.median(found) < goal else text


def _bandwidth(rows: Sequence[Row]) -> str:
    single = [row for row in rows if row.tokens == 1]
    shapes = sorted({row.shape for row in single}, key=lambda shape: [row.shape for row in single].index(shape))
    lines = []
    for block, dtype, sparsity in sorted({(row.block, row.dtype, row.sparsity) for row in single}):
        cells = [f"{block} {dtype} {sparsity:.0%}"]
        for shape in shapes:
            row = next(r for r in single if (r.shape, r.block, r.dtype, r.sparsity) == (shape, block, dtype, sparsity))
            share = (row.gbps or 0) / (row.read_gbps or 1)
            text = f"{share:.0%} of {row.read_gbps:.0f} GB/s"
            cells.append(text if share >= LEAST_SHARE_OF_READ or dtype == "int8" else f"**{text}**")
        lines.append(cells)
    return _table(["", *shapes], lines)


def _int8(rows: Sequence[Row]) -> str:
    single = {(row.shape, row.block, row.sparsity, row.dtype): row.ms for row in rows if row.tokens == 1}
    sparsities = sorted({row.sparsity for row in rows})
    cells = []
    for sparsity in sparsities:
        found = [
            single[shape, block, at, "bfloat16"] / ms
            for (shape, block, at, dtype), ms in single.items()
            if dtype == "int8" and at == sparsity
        ]
        cells.append(_cell(found, INT8_SPEEDUP))
    return _table([f"{sparsity:.0%}" for sparsity in sparsities], [cells])


def _prepacked(rows: Sequence[Row]) -> str:
    tokens = sorted({row.tokens for row in rows})

    def ratio(row: Row) -> float:
        return row.dense_ms / (row.prepacked_ms or row.dense_ms)

    return _table([f"{count} tokens" for count in tokens], [[_of(rows, count, ratio) for count in tokens]])


def _of(rows: Sequence[Row], tokens: int, value: Callable[[Row], float]) -> str:
    return f"{statistics.median(value(row) for row in rows if row.tokens == tokens):.2f}"


def _calls(rows: Mapping[str, Row]) -> str:
    lines = []
    if module := rows.get("module"):
        added = 1e3 * (module.ms - module.dense_ms)
        lines.append(f"* A `PagedLinear` adds {added:.1f} µs to its kernel's call.")
    if turns := rows.get("alternating"):
        lines.append(
            f"* A paged layer and a dense one of torch, {turns.shape} at {turns.tokens} tokens, take {turns.ms:.3f} ms "
            f"in turn, and {turns.dense_ms:.3f} ms each by itself: they share their threads."
        )
    return "\n".join(lines)


def _models(rows: Sequence[Row]) -> str:
    header = ["", "model", "block", "dtype", "sparsity", "tokens", "dense ms", "ours ms", "ratio"]
    lines = []
    for row in rows:
        goal = GOALS.get((f"{row.kernel} {row.dtype}", row.sparsity, row.tokens))
        text = _cell([row.speedup], goal).replace(f" ({row.speedup:.2f})", "")
        facts = [row.kernel, row.shape, row.block, row.dtype, f"{row.sparsity:.0%}", str(row.tokens)]
        lines.append([*facts, f"{row.dense_ms:.2f}", f"{row.ms:.2f}", text])
    return _table(header, lines)


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *lines])


if __name__ == "__main__":
    typer.run(main)
