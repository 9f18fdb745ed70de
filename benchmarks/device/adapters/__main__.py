"""Whole processes of a language model with LoRA adapters: ours, with room for two of them, and llama.cpp with all.

    python -m benchmarks.device.adapters BUNDLE --gguf FILE --storage 300MB/s --json docs/device.json

Random adapters are added to a copy of the bundle, whose first task keeps all blocks of a llama. Each process decodes
with and without an adapter in turn, and swaps adapters: two in memory, and, where there are more, some that aren't.
Files are in the page cache, and our reads are held back as slower storage would. llama.cpp frees an adapter and reads
it again, as fast as it can. Rows of llama.cpp need ``pip install llama-cpp-python gguf``.
"""

from __future__ import annotations

import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.device.adapters.made import made, write_gguf, write_peft
from benchmarks.device.adapters.work import DECODED, READ
from benchmarks.device.measured import check, tell
from benchmarks.device.processes import in_turns
from weightpager.bundle import Bundle
from weightpager.bundle.addition import Addition, add_task
from weightpager.bundle.footprint import expanded_bytes
from weightpager.config import format_size, parse_bandwidth
from weightpager.runtime.budget import needs_of

Q_AND_V = ("self_attn.q_proj", "self_attn.v_proj")


def main(
    bundle: Annotated[Path, typer.Argument(help="Of a llama, whose first task keeps all blocks.")],
    gguf: Annotated[Path | None, typer.Option(help="The same model for llama.cpp.")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="File of rows.")] = None,
    storage: Annotated[str, typer.Option(help="Bytes that our processes read per second.")] = "300MB/s",
    count: Annotated[int, typer.Option(help="Of adapters.", min=4)] = 16,
    rank: Annotated[int, typer.Option(help="Of each.")] = 16,
    times: Annotated[int, typer.Option(help="That each process is run.")] = 5,
    threads: Annotated[int, typer.Option(help="Of each process.")] = 1,
    only: Annotated[str, typer.Option(help="Only rows with this in their names.")] = "",
) -> None:
    """Measure whole processes."""
    with tempfile.TemporaryDirectory(dir=bundle.resolve().parent) as name:
        folder = Path(name)
        every, two, narrow = (folder / f"{each}.bundle" for each in ("all", "two", "narrow"))
        commands = {}
        for copy, adapters, parts in ((every, count, ()), (two, 2, ()), (narrow, count, Q_AND_V)):
            room = _with_adapters(bundle, copy, adapters, rank, parts)
            for rate, named in ((parse_bandwidth(storage), ""), (0, ", storage not limited")):
                ours = ["-m", f"{__package__}.ours", str(copy), str(room), str(rate)]
                commands[f"native {_NAMES[copy.stem].format(count)}{named}"] = ours
        size = format_size(Bundle.open(every).low_rank_bytes("a0"))
        narrow_size = format_size(Bundle.open(narrow).low_rank_bytes("a0"))
        if gguf is not None and find_spec("llama_cpp") is not None:
            files = [str(write_gguf(made(Bundle.open(bundle), at, rank), folder / f"{at}.gguf")) for at in range(count)]
            for adapters in (count, 2):
                commands[f"llama.cpp {adapters} adapters"] = [
                    "-m", f"{__package__}.llama_cpp_python", str(gguf), str(threads), *files[:adapters],
                ]  # fmt: skip
        elif gguf is not None:
            typer.echo("llama-cpp-python isn't installed: no rows of llama.cpp", err=True)
        commands = {row: command for row, command in commands.items() if only in row}
        about = (
            f"adapters of rank {rank} on all weights ({size}), or on q and v ({narrow_size}); {DECODED} tokens behind "
            f"{READ}; our storage: {storage}; threads: {threads}"
        )
        check("adapters", about, commands, json_)
        rows = in_turns(commands, times, threads)
    tell("adapters", about, rows, "benchmarks.device.adapters", json_)


_NAMES = {"all": "{} adapters, room for two", "two": "2 adapters", "narrow": "{} adapters on q and v, room for two"}


def _with_adapters(bundle: Path, copy: Path, count: int, rank: int, parts: tuple[str, ...]) -> int:
    """Add random adapters to a copy of a bundle; the budget that has room for two of them."""
    shutil.copytree(bundle, copy)
    for at in range(count):
        adapter = write_peft(made(Bundle.open(bundle), at, rank, parts), copy.parent / f"{copy.stem}-{at}")
        add_task(copy, Addition(f"a{at}", adapter))
        typer.echo(f"{copy.stem}: {at + 1} of {count} adapters added", err=True)
    opened = Bundle.open(copy)
    pages = len({*opened.pages_of("a0").tolist(), *opened.pages_of("a1").tolist()})
    return needs_of(opened, "auto", None).holding(pages, tables=expanded_bytes(opened, ["a0", "a1"])).total


if __name__ == "__main__":
    typer.run(main)
