"""``trim``: a decoder with the tokens alone that its tasks use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightpager.cli import output
from weightpager.cli.commands.init import quoted
from weightpager.cli.options import Json, Quiet, extra
from weightpager.cli.output import notes
from weightpager.cli.progress import progress

if TYPE_CHECKING:
    from weightpager.compiler.trim import Trimmed, TrimmedTask


def trim(
    tasks: Annotated[Path, typer.Argument(metavar="TASKS.yaml", help="Task file.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Model directory to create.", show_default=False)],
    tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Keep N tokens: the most frequent ones of the training texts. If these have fewer than N, the "
            "tokenizer's first tokens fill up. Default: all that training texts have.",
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a task file's decoder anew with a smaller vocabulary. Needs `weightpager[compile]`.

    A small decoder's table of tokens is always in memory, and its head reads all of it for every token. Narrow tasks
    use part of it. Tokens that are gone are spelled by shorter ones, so that any text can still be read and written.

    Example: `weightpager trim tasks.yaml --tokens 16384 --out smollm2-16k/`, then `model: smollm2-16k` in the task file
    """
    with extra("compile"):
        from weightpager.compiler.task_file.file import load

    task_file = load(tasks)
    with output.loading_torch():
        from weightpager.compiler.trim import trim as write_trimmed
    with notes(quiet or json), progress(quiet or json) as stages:
        trimmed = write_trimmed(task_file, out, tokens, stages)
    if json:
        output.print_json(trimmed)
        return
    output.table(
        f"{out}: {trimmed.after} of {trimmed.before} tokens",
        ["task", "different tokens in training texts", "tokens of held-out texts", "now", "longer by"],
        [[name, task.seen, task.before, task.after, _longer(task)] for name, task in trimmed.tasks.items()],
    )
    output.say(_parameters(trimmed))
    if not quiet:
        model = quoted(os.path.relpath(out, tasks.parent))  # paths in a task file begin at its folder
        output.next_step(f"'model: {model}' in {tasks}; then weightpager compile, which trains what is left")


def _longer(task: TrimmedTask) -> str:
    return f"{task.after / max(1, task.before) - 1:.1%}"


def _parameters(found: Trimmed) -> str:
    before, after = (f"{count * found.row_parameters:,}" for count in (found.before, found.after))
    return f"rows of tokens hold {after} parameters instead of {before}"
