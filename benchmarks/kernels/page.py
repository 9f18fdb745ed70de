"""The page ``docs/kernels-measured.md`` from the rows of the kernel benchmarks.

python -m benchmarks.kernels.page --json docs/kernels.json --out docs/kernels-measured.md
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.kernels.__main__ import Row, read
from benchmarks.report.tables import table

Goal = float
"""The least ratio of dense time to ours."""

_TOKENS = (1, 8, 32, 128, 512)

GOALS: dict[tuple[str, float, int], Goal] = {
    ("bfloat16", sparsity, tokens): goal
    for sparsity, goals in {
        0.0: (0.9, 0.9, 1.0, 1.0, 0.9),
        0.5: (1.7, 1.7, 2.0, 1.8, 1.5),
        0.75: (3.2, 3.2, 3.8, 3.0, 2.4),
    }.items()
    for tokens, goal in zip(_TOKENS, goals, strict=True)
} | {
    ("int4", 0.0, 1): 3.0,
    ("decode bfloat16", 0.5, 24): 1.3,
    ("decode bfloat16", 0.75, 24): 1.5,
    ("decode int8", 0.5, 24): 1.5,
    ("prefill bfloat16", 0.5, 512): 1.3,
    ("body bfloat16", 0.5, 512): 1.3,
}
"""(dtype, sparsity, tokens) → at least; with ``prefill`` or ``decode`` before the dtype for a whole model."""

LEAST_SHARE_OF_READ = 0.85
"""Of a plain read's bandwidth, at one token."""

SMALLER_SPEEDUP = {("int8", "bfloat16"): 1.6, ("int4", "int8"): 1.6}
"""Of a dtype over a wider one of the same blocks, at one token."""

INT4_SHARE = 0.9
"""Of bfloat16's speed at 32 tokens and more, for int4 of the same blocks."""

MOST_TOKENS_IN_FLOAT32 = 8
"""Up to so many the goals are asked for on instruction sets without bfloat16, where dense layers are in float32."""


_TOP = """# Kernels, measured

For whoever asks how fast the [kernels](kernels.md) are beside dense layers. `python -m benchmarks.kernels.page`
writes this page from [{json}]({json}). Two cores of rented machines were used, whose speed varied; each heading names
the processor. Ratios are dense time over ours, in one run, the kernels taking turns. Every call multiplies by another
weight: a GiB of other weights is read before one is used again. Each cell is the median over four models' widest
layers, with the worst of them in brackets. It is **bold** where a goal is missed. Dense layers use the same
instructions as ours: `amx_bf16` meets torch with AMX, `avx512_bf16` torch without.

Dense layers are never in int8 or int4: pages in int8 and int4 are compared with the same dense layer as pages in
bfloat16, and torch's own products in int8 and int4 are not timed here. Dense layers are torch's plain ones, whose
weights aren't prepacked. Prepacking, as `torch.compile` does it for one shape, makes them faster: a table says by how
much for each kernel in bfloat16. Divide by that for the ratio to prepacked layers.

```
python -m benchmarks.kernels --json docs/kernels.json
WEIGHTPAGER_ISA=avx512_bf16 ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 python -m benchmarks.kernels --json docs/kernels.json
WEIGHTPAGER_ISA=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python -m benchmarks.kernels --json docs/kernels.json
python -m benchmarks.kernels.calls --json docs/kernels.json
python -m benchmarks.kernels.generate --json docs/kernels.json
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
    out.write_text(page(read(json), json.name), encoding="utf-8")


def page(rows: Sequence[Row], json_name: str) -> str:
    parts = [_TOP.format(json=json_name)]
    for isa in sorted({row.isa for row in rows if row.kernel == "paged_linear"}):
        of_isa = [row for row in rows if row.isa == isa and row.kernel == "paged_linear"]
        against = "`torch.nn.functional.linear`" + (" in float32" if of_isa[0].prepacked_ms is None else " in bfloat16")
        parts.append(f"## {isa} {_on(of_isa)}, against {against}\n")
        for block in sorted({row.block for row in of_isa}):
            for dtype in sorted({row.dtype for row in of_isa}):
                some = [row for row in of_isa if (row.block, row.dtype) == (block, dtype)]
                parts.append(f"Blocks of {block} in {dtype}\n\n{_speedups(some)}\n")
        parts.append(f"At one token, share of a plain read's bandwidth for as many bytes:\n\n{_bandwidth(of_isa)}\n")
        for dtype, wider in SMALLER_SPEEDUP:
            if any(row.dtype == dtype for row in of_isa):
                at_one = [row for row in of_isa if row.tokens == 1]
                goal = SMALLER_SPEEDUP[dtype, wider]
                title = f"At one token, {dtype} against {wider} of the same blocks:"
                parts.append(f"{title}\n\n{_against(at_one, dtype, wider, goal)}\n")
        many = [row for row in of_isa if row.tokens >= 32]
        if any(row.dtype == "int4" for row in many):
            title = "At 32 tokens and more, int4 against bfloat16 of the same blocks:"
            parts.append(f"{title}\n\n{_against(many, 'int4', 'bfloat16', INT4_SHARE)}\n")
        if of_isa[0].prepacked_ms is not None:
            parts.append(f"Dense, prepacked for its shape, against unpacked:\n\n{_prepacked(of_isa)}\n")
    calls = {row.kernel: row for row in rows if row.kernel in ("module", "alternating")}
    if calls:
        parts.append(f"## Calls {_on(list(calls.values()))}\n\n{_calls(calls)}\n")
    whole = [row for row in rows if row.kernel in ("prefill", "body", "decode")]
    if whole:
        parts.append(f"## A whole model, through transformers {_on(whole)}\n\n{_WHOLE}\n\n{_models(whole)}\n")
    if measured := sorted({f"* `{row.command}`, commit {row.commit}" for row in rows if row.command}):
        earlier = [] if all(row.command for row in rows) else ["* others: earlier, not noted"]
        parts.append("## Where the rows come from\n\n" + "\n".join([*measured, *earlier]) + "\n")
    return "\n".join(parts)


def _on(rows: Sequence[Row]) -> str:
    return f"on {', '.join(sorted({row.cpu for row in rows}))}"


def _speedups(rows: Sequence[Row]) -> str:
    tokens = sorted({row.tokens for row in rows})
    prepacked = rows[0].prepacked_ms is not None  # only in bfloat16
    lines = []
    for sparsity in sorted({row.sparsity for row in rows}):
        cells = [f"{sparsity:.0%}"]
        for count in tokens:
            found = [row.speedup for row in rows if (row.sparsity, row.tokens) == (sparsity, count)]
            asked = prepacked or count <= MOST_TOKENS_IN_FLOAT32
            goal = GOALS.get((rows[0].dtype, sparsity, count)) if asked else None
            cells.append(_cell(found, goal) if found else "-")
        lines.append(cells)
    return table(["sparsity", *(f"{count} tokens" for count in tokens)], lines)


def _cell(found: Sequence[float], goal: Goal | None) -> str:
    text = f"{statistics.median(found):.2f} ({min(found):.2f})"
    return f"**{text}**" if goal is not None and statistics.median(found) < goal else text


def _bandwidth(rows: Sequence[Row]) -> str:
    single = [row for row in rows if row.tokens == 1]
    known = {(row.shape, row.block, row.dtype, row.sparsity): row for row in single}
    shapes = sorted({row.shape for row in single}, key=lambda shape: [row.shape for row in single].index(shape))
    lines = []
    for block, dtype, sparsity in sorted({(row.block, row.dtype, row.sparsity) for row in single}):
        cells = [f"{block} {dtype} {sparsity:.0%}"]
        for shape in shapes:
            row = known.get((shape, block, dtype, sparsity))
            if row is None:
                cells.append("-")
                continue
            share = (row.gbps or 0) / (row.read_gbps or 1)
            text = f"{share:.0%} of {row.read_gbps:.0f} GB/s"
            cells.append(text if share >= LEAST_SHARE_OF_READ or dtype != "bfloat16" else f"**{text}**")
        lines.append(cells)
    return table(["", *shapes], lines)


def _against(rows: Sequence[Row], dtype: str, wider: str, goal: Goal) -> str:
    """How much faster a dtype is than a wider one, by sparsity and tokens."""
    ms = {(row.dtype, row.sparsity, row.tokens, row.shape, row.block): row.ms for row in rows}
    tokens = sorted({row.tokens for row in rows if row.dtype == dtype})
    layers = {(row.shape, row.block) for row in rows}
    lines = []
    for sparsity in sorted({row.sparsity for row in rows}):
        cells = [f"{sparsity:.0%}"]
        for count in tokens:
            ours, theirs = ([ms.get((of, sparsity, count, *layer)) for layer in layers] for of in (dtype, wider))
            found = [slow / fast for slow, fast in zip(theirs, ours, strict=True) if slow and fast]
            cells.append(_cell(found, goal) if found else "-")
        lines.append(cells)
    return table(["sparsity", *(f"{count} tokens" for count in tokens)], lines)


def _prepacked(rows: Sequence[Row]) -> str:
    tokens = sorted({row.tokens for row in rows})

    def ratio(row: Row) -> float:
        return row.dense_ms / (row.prepacked_ms or row.dense_ms)

    return table([f"{count} tokens" for count in tokens], [[_of(rows, count, ratio) for count in tokens]])


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
            f"in turn, and {turns.dense_ms:.3f} ms in all when each runs by itself: they share their threads."
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
    return table(header, lines)


if __name__ == "__main__":
    typer.run(main)
