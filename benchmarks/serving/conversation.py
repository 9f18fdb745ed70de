"""A conversation with each task of a bundle, taking turns: how long the first token takes, by what is kept.

    python -m benchmarks.serving.conversation bundle --turns 10

Every turn switches to another task, whose conversation goes on by new words and by what was answered. The same words
are also read alone, as a first turn, and as a whole by an engine that keeps nothing. Decoding is greedy, and all three
run in one process; every turn's answer must be the same with and without what is kept.
"""

from __future__ import annotations

import random
import statistics
import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.report.tables import table
from weightpager.bundle import Bundle
from weightpager.engine import Engine

_WORDS = (
    "the", "car", "light", "road", "left", "right", "what", "do", "you", "see", "behind", "next", "stop", "go", "is",
    "there", "any", "person", "crossing", "now",
)  # fmt: skip


def main(
    bundle: Annotated[Path, typer.Argument(help="With tasks that write.")],
    turns: Annotated[int, typer.Option(help="Of each conversation.")] = 10,
    words: Annotated[int, typer.Option(help="New ones in each turn.")] = 40,
    answer: Annotated[int, typer.Option(help="Tokens of an answer.")] = 40,
    cache: Annotated[str, typer.Option(help="Size of the prefix cache.")] = "256MiB",
) -> None:
    """Measure first tokens."""
    tasks = [task.name for task in Bundle.open(bundle).tasks.values() if task.writes][:4]
    said: dict[str, list[dict[str, str]]] = {task: [] for task in tasks}
    drawn, seconds = random.Random(0), dict[tuple[int, str], list[float]]()
    with Engine.from_pretrained(bundle, prefix_cache=cache) as keeping, Engine.from_pretrained(bundle) as fresh:
        for turn in range(1, turns + 1):
            for task in tasks:
                new = " ".join(drawn.choices(_WORDS, k=words))
                said[task].append({"role": "user", "content": new})
                first, found = _turn(keeping, task, said[task], answer)
                whole, wanted = _turn(fresh, task, said[task], answer)
                alone, _ = _turn(fresh, task, said[task][-1:], 1)
                if found != wanted:
                    raise SystemExit(f"{task}, turn {turn}: expected {wanted!r}, found {found!r}")
                said[task].append({"role": "assistant", "content": found})
                for what, took in (("kept", first), ("read again", whole), ("without history", alone)):
                    seconds.setdefault((turn, what), []).append(took)
        report = keeping.report().prefixes
    rows = []
    for turn in range(1, turns + 1):
        kept, again, alone = (
            statistics.median(seconds[turn, what]) for what in ("kept", "read again", "without history")
        )
        rows.append([str(turn), *(f"{1e3 * each:.1f}" for each in (kept, again, alone)), f"{kept / alone:.2f}"])
    typer.echo(table(["turn", "kept, ms", "read again, ms", "without history, ms", "kept over without"], rows))
    typer.echo(str(report))


def _turn(engine: Engine, task: str, said: list[dict[str, str]], most: int) -> tuple[float, str]:
    """Seconds to the first text of an answer, the switch before it not counted; and the answer."""
    conversation = engine.bundle.task(task).takes_conversations
    prompt = said if conversation else " ".join(each["content"] for each in said)
    engine.activate(task)
    start = time.perf_counter()
    pieces, first = [], 0.0
    for piece in engine.stream(task, prompt, max_new_tokens=most):
        first = first or time.perf_counter() - start
        pieces.append(piece)
    return first or time.perf_counter() - start, "".join(pieces)


if __name__ == "__main__":
    typer.run(main)
