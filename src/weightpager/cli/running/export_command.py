"""``export``: a task as an ordinary transformers directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weightpager.answers.kinds import kind_of
from weightpager.bundle import Bundle
from weightpager.cli import output
from weightpager.cli.completion import TaskName
from weightpager.cli.options import BundlePath, Json, extra


def export(
    bundle: BundlePath,
    task: TaskName,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory to create.", show_default=False)],
    json: Json = False,
) -> None:
    """Export a task as an ordinary dense-with-zeros transformers directory. Needs `weightpager[torch]`.

    Its weights are exactly those that the task multiplies with, so in float32 where pages are int4 or int8. Texts may
    still differ at near ties: beside such weights weightpager's kernels round activations, too.

    Example: `weightpager export assistant.bundle --task spam --out spam-hf/`
    """
    with extra("torch"):
        from weightpager.backends.torch.export import export_task
        from weightpager.readers.tokenizer import open_tokenizer

    opened = Bundle.open(bundle)
    written = export_task(opened, task, out)
    if json:
        output.print_json({"task": task, "out": str(written)})
    else:
        output.say(f"{written}: {task}, for transformers' from_pretrained")
    entry = opened.task(task)
    if kind_of(entry.kind).writes and not entry.add_bos_token and open_tokenizer(opened).begin_ids:
        output.hint(
            f"{task} learnt from texts without the tokens that its tokenizer puts in front of one, and reads prompts "
            "without them: call the tokenizer with add_special_tokens=False"
        )
