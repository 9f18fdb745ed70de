"""The page ``docs/box.md`` from the rows of the box.

python -m benchmarks.box.page --json docs/box.json --out docs/box.md
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from benchmarks import row_file
from benchmarks.box.boxes import AHEAD, METHODS
from benchmarks.box.requests import PAUSE, ROUND
from benchmarks.box.rows import OF_RESIDENT, OF_ROUNDS, PEERS, RESIDENT, SHARES, Row, Spread, of, pairs
from benchmarks.report.tables import table
from weightpager.config import format_size

HALF = 0.5
SHORT = {
    "ours": "ours",
    "split by hand": "split",
    "processes, started anew": "new",
    "processes, forked": "forked",
    "processes, forked, a task at a time": "forked, lazy",
}
"""Methods as tables have them."""

OURS, SPLIT = "ours", "split by hand"
PROCESSES = [name for name in METHODS if name.startswith("processes")]
MOST = {"processes": 0.3, SPLIT: 0.7, "switch": 1.15, "return": 1.2, "memory": 1.1}
"""What is asked for, each at most."""

NAMES = {0.0: "largest need", 0.5: "half", 0.8: "four fifths", 1.0: "all"}
"""Of `SHARES`."""

_TOP = """# A box

For whoever runs several models in one budget. `python -m benchmarks.box.page` writes this page from [{json}]({json}).

{bundles} share a budget: bursts of search, writing and questions about frames. *Ours* is
[`Models`](own-model.md#several-bundles-under-one-budget); *split* an engine for each, with a part in proportion to
what it can use. Others are a process for each bundle, the least recently used killed for room: *new* ones start Python,
*forked* ones copy one that has imported everything, *lazy* ones load tasks when asked for them. Processes and engines
read the rows of embedding tables that have room when they begin (12 MiB of search); ours when they are looked up.

Shapes are real: MiniLM, SmolLM2-135M, and DINOv2-S before SmolLM2-135M. Nothing was trained to win back accuracy, and
a connector is random: answers mean nothing. Pages come at {rate:.0f} MB/s; other files are waited for by their sizes.
A wait ends when the task is ready; each task was asked once before. Medians of {rounds} traces of {requests} requests,
least and most in brackets, on two cores of {cpu}.

```
python -m benchmarks.box.bundles --out bundles
python -m benchmarks.box bundles/*.bundle --json docs/box.json
python -m benchmarks.box.resident bundles/search.bundle bundles/assistant.bundle --json docs/box.json
```
"""


_ASKED = """\
A switch goes to another bundle, all pages evicted: time over bytes / bandwidth. A return wakes a bundle that was put to
sleep by hand, and answers: over bytes / bandwidth and an engine's first answer. Process: peak, over budget and what the
largest bundle's own process takes beside its budget. Of *rounds* the same {round} requests come again and again, nine
of ten as they are due, {pause} s after the answer before: time to [prefetch](prediction.md) over all bundles."""


_KEPT = """\
The requests of {bundles} alone. Others have all in one process: ONNX Runtime an encoder in int8 with a head for each
task that classifies texts, llama.cpp a writer in Q4_0. Neither runs the model that drives. Means in ms; process in
MiB."""


def main(
    json: Annotated[Path, typer.Option(help="Rows that the box wrote.")],
    out: Annotated[Path, typer.Option(help="The page to write.")],
) -> None:
    """Write the page."""
    if not json.is_file():
        raise typer.BadParameter(f"expected a file of rows, found nothing at {json}", param_hint="--json")
    out.write_text(page(row_file.read(json, Row), json.name), encoding="utf-8")


def page(rows: Sequence[Row], json_name: str) -> str:
    traces = [row for row in rows if row.kind == "trace" and row.method == OURS and row.figures]
    top = _TOP.format(
        json=json_name,
        bundles=" and ".join(filter(None, [", ".join(traces[0].bundles[:-1]), traces[0].bundles[-1]])).capitalize(),
        rate=traces[0].rate / 1e6,
        rounds=len({row.repeat for row in traces}),
        requests=round((traces[0].figures or [{}])[0]["requests"]),
        cpu=traces[0].cpu,
    )
    parts = [
        top,
        f"## Asked and reached\n\n{_ASKED.format(round=ROUND, pause=PAUSE)}\n\n{_goals(rows)}\n",
        f"## By budget\n\nMean wait and 95th percentile, ms:\n\n{_by_budget(rows, 'wait', 'wait_p95', _ms)}\n",
        f"Read and resident in all processes, MiB:\n\n{_by_budget(rows, 'read_bytes', 'process_bytes', _mib)}\n",
        f"## One bundle alone, `Models` over `Engine`\n\nIn three quarters of what it can use.\n\n{_alone(rows)}\n",
    ]
    if kept := of(rows, RESIDENT, PEERS):
        about = _KEPT.format(bundles=" and ".join(kept[0].bundles))
        parts.append(f"## Beside what stays in memory\n\n{about}\n\n{_resident(rows)}\n")
    commits = ", ".join(sorted({row.commit for row in rows}))
    return "\n".join([*parts, f"Rows have their commands; commits: {commits}.", ""])


def _goals(rows: Sequence[Row]) -> str:
    lines = [_goal(name, found, most) for name, found, most in _reached(rows)]
    broken = sum(figures["violations"] for row in of(rows, "trace", OURS) for figures in row.figures or [])
    lines.append(["memory above the budget, times", "0", f"{broken:.0f}", _met(broken == 0)])
    return table(["ratio", "at most", "reached", ""], lines)


def _goal(name: str, found: list[float], most: float | None) -> list[str]:
    asked = "–" if most is None else str(most)
    if not found:
        return [name, asked, "can't run: the largest tasks of all need more", ""]
    reached = Spread.of(found)
    return [name, asked, reached.shown("{:.2f}".format), "" if most is None else _met(reached.median <= most)]


def _met(is_met: bool) -> str:
    return "met" if is_met else "**not met**"


def _reached(rows: Sequence[Row]) -> Iterator[tuple[str, list[float], float | None]]:
    """What is measured, its values, and the most that is asked for, if anything."""
    for method in PROCESSES:
        yield f"wait at half, over {SHORT[method]}", _of_means(rows, method, HALF, "wait"), MOST["processes"]
    yield "bytes at half, over new and forked", _of_means(rows, PROCESSES[0], HALF, "read_bytes"), None
    yield "wait at half, over split", _of_means(rows, SPLIT, HALF, "wait"), MOST[SPLIT]
    yield "wait at four fifths, over split", _of_means(rows, SPLIT, 0.8, "wait"), MOST[SPLIT]
    yield "bytes at four fifths, over split", _of_means(rows, SPLIT, 0.8, "read_bytes"), None
    for what, key, most in (("switch to NAME", "over", MOST["switch"]), ("return of NAME", "over", MOST["return"])):
        for place, name in enumerate(_steps(rows)[0].bundles):
            done = [figures for row in _steps(rows) for figures in row.figures or [] if figures["bundle"] == place]
            own = [each for each in done if bool(each["returns"]) != what.startswith("switch")]
            yield what.replace("NAME", name), [each[key] for each in own], most
    for share in OF_ROUNDS:
        both = pairs(of(rows, "rounds", AHEAD, share), of(rows, "rounds", OURS, share))
        for key, what in (("wait", "wait"), ("answer", "answer"), ("read_bytes", "bytes")) if both else ():
            found = [ahead[key] / plain[key] for ahead, plain in both]
            yield f"rounds: {what} at {NAMES[share]}, prefetching over not", found, None
    yield "process", _process_ratios(rows), MOST["memory"]


def _steps(rows: Sequence[Row]) -> list[Row]:
    return of(rows, "steps", OURS)


def _of_means(rows: Sequence[Row], method: str, share: float, *keys: str) -> list[float]:
    """Ours over a method's, by repeat: of the sums of these figures."""
    both = pairs(of(rows, "trace", OURS, share), of(rows, "trace", method, share))
    return [sum(ours[key] for key in keys) / sum(theirs[key] for key in keys) for ours, theirs in both]


def _process_ratios(rows: Sequence[Row]) -> list[float]:
    alone = [figures for row in of(rows, "alone", "Engine") for figures in row.figures or []]
    if not alone:
        return []
    plain = max(each["peak_bytes"] - each["held_bytes"] for each in alone)
    return [
        figures["peak_bytes"] / (row.budget + plain) for row in of(rows, "trace", OURS) for figures in row.figures or []
    ]


def _by_budget(rows: Sequence[Row], first: str, second: str, form: Callable[[float], str]) -> str:
    """Medians of two figures, by method and budget."""
    lines = []
    for method in METHODS:
        cells = [SHORT[method]]
        for share in SHARES:
            found = [figures for row in of(rows, "trace", method, share) for figures in row.figures or []]
            both = [form(median(figures[key] for figures in found)) for key in (first, second)] if found else ["–"]
            cells.append("; ".join(both))
        lines.append(cells)
    heads = [f"{NAMES[share]}: {format_size(of(rows, 'trace', OURS, share)[0].budget)}" for share in SHARES]
    return table(["budget", *heads], lines)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.0f}"


def _mib(size: float) -> str:
    return f"{size / 2**20:.0f}"


def _alone(rows: Sequence[Row]) -> str:
    lines = []
    ours, theirs = of(rows, "alone", "Models"), of(rows, "alone", "Engine")
    for name in dict.fromkeys(name for row in ours for name in row.bundles):
        both = pairs([row for row in ours if row.bundles == [name]], theirs)
        keys = ("wait", "answer", "peak_bytes")
        ratios = [Spread.of(a[key] / b[key] for a, b in both) if both else None for key in keys]
        lines.append([name, *("–" if each is None else each.shown("{:.2f}".format) for each in ratios)])
    return table(["bundle", "wait", "answer", "process"], lines)


def _resident(rows: Sequence[Row]) -> str:
    keys = ("wait", "answer_search", "answer_writing", "process_bytes")
    ways = [(SHORT[OURS] + f", {NAMES[share]}", OURS, share) for share in OF_RESIDENT] + [(PEERS, PEERS, 1.0)]
    lines = []
    for name, method, share in ways:
        found = [figures for row in of(rows, RESIDENT, method, share) for figures in row.figures or []]
        spreads = [Spread.of(figures[key] for figures in found) for key in keys]
        forms = [_tenths, _tenths, _tenths, _mib]
        lines.append([name, *(each.shown(form) for each, form in zip(spreads, forms, strict=True))])
    return table(["", "wait", "a search", "an answer", "process"], lines)


def _tenths(seconds: float) -> str:
    return f"{1e3 * seconds:.1f}"


if __name__ == "__main__":
    typer.run(main)
