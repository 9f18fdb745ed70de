"""``weightpager run``, ``eval`` and ``export``: a bundle's tasks are put to use."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer

from weightpager.answers.kinds import Prediction
from weightpager.answers.token_reader import PicturePrompt
from weightpager.bundle import Bundle, TaskEntry
from weightpager.bundle.footprint import footprint
from weightpager.cli import output
from weightpager.cli.options import Backend, Budget, BundlePath, Dtype, Json, Quiet, Rows, TaskName, extra, task_names
from weightpager.cli.progress import progress
from weightpager.config import is_unicode, parse_size, stated_size
from weightpager.errors import BudgetError, ConfigError, shown
from weightpager.readers.chat_template import Messages
from weightpager.runtime.budget import check_fits

if TYPE_CHECKING:
    from weightpager.answers.predict import Input
    from weightpager.bundle.report.compile_report import TaskScore
    from weightpager.engine import Engine, EngineReport


def opened(
    bundle: Path, tasks: Sequence[str], budget: str | None, dtype: str, rows: str | None, backend: str
) -> Engine:
    """An engine. If the budget holds no task at all, the error tells what the first of the wanted tasks needs."""
    from weightpager.engine import Engine

    try:
        engine = Engine.from_pretrained(bundle, budget=budget, rows=rows, dtype=dtype, backend=backend)
    except BudgetError:
        if budget is not None:
            found = Bundle.open(bundle)
            for task in tasks or found.tasks:
                check_fits(found, task, parse_size(budget), dtype, stated_size(rows, "rows"))
        raise
    stated = stated_size(rows, "rows")
    if stated is not None and stated < (least := footprint(engine.bundle).rows):
        usual = f"the least that they get where none are stated, {output.enough(least)}"
        output.hint(f"note: --rows {output.size(stated)} is less than {usual}: texts will read more from storage")
    return engine


def run(
    bundle: BundlePath,
    task: TaskName,
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEXT]…", help="Texts; one a line from standard input if absent or '-'."),
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(
            "--image",
            "-i",
            metavar="FILE",
            help="Image, for tasks that read images; may be repeated. Before texts: they are about these images.",
        ),
    ] = None,
    budget: Budget = None,
    rows: Rows = None,
    dtype: Dtype = "auto",
    backend: Backend = "auto",
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Length of a generated text at most. Default: what the task file says (64 unless stated), or 32 for "
            "language modelling.",
            show_default=False,
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="System message before each text; for tasks that learnt from conversations."),
    ] = None,
    repeat: Annotated[
        int, typer.Option(min=0, metavar="TIMES", help="Answer again so often, and say how long that takes.")
    ] = 0,
    json: Json = False,
) -> None:
    """Run a task on texts, or on images, under a memory budget.

    Example: `weightpager run assistant.bundle --task spam --budget 4MiB "You won a prize"`

    Images: `weightpager run drive.bundle --task traffic-light --image frame.png`; needs `weightpager[images]`.

    Questions about images: `weightpager run drive.bundle --task light --image frame.jpg "Which colour is the light?"`
    """
    with opened(bundle, [task], budget, dtype, rows, backend) as engine:
        entry = engine.bundle.task(task)
        _check_system(entry, system)
        if max_new_tokens is not None and not entry.writes:
            why = f"since {task} writes no text"
            raise ConfigError(f"run: expected no '--max-new-tokens', {why}, found {max_new_tokens}")
        pictures = image if image and engine.bundle.pictures is not None else None
        inputs = (
            _images(task, image, texts) if entry.takes_images else _inputs(task, None if pictures else image, texts)
        )
        said = [text if system is None else _conversation(system, text) for text in inputs]
        asked: list[Input] = [given if pictures is None else PicturePrompt(given, pictures) for given in said]
        answer = partial(engine.predict, task, asked, max_new_tokens=max_new_tokens)
        predictions = answer()
        report = engine.report()  # before what is only timed
        seconds = [_seconds(answer) for _ in range(repeat)]
    if json:
        engine_report = {**asdict(report), "memory": report.memory.by_purpose()}
        output.print_json({"task": task, "predictions": predictions, "engine": engine_report, "seconds": seconds})
        return
    output.say(_answers(predictions))
    cut = sum(prediction.truncated for prediction in predictions)
    if cut:
        output.hint(f"{cut} of {len(predictions)} texts were cut: {task} reads {entry.max_length} tokens at most")
    load = report.switches[-1]
    output.hint(
        f"loaded {output.size(load.bytes)} in {output.milliseconds(load.load_seconds)}{_row_faults(report)}; "
        f"weights {output.size(report.memory.total)} of a budget of {output.size(report.budget)}; "
        f"backend {report.backend}, kernel {report.kernel}"
    )
    if seconds:
        output.hint(_speed(predictions, seconds))


def _row_faults(report: EngineReport) -> str:
    """What rows of embedding tables took, beside the switch."""
    rows = report.rows
    if rows is None or not rows.faults:
        return ""
    return f", and {rows.faults} rows of embedding tables in {output.milliseconds(rows.fault_seconds)}"


def _seconds(answer: Callable[[], object]) -> float:
    start = time.perf_counter()
    answer()
    return time.perf_counter() - start


def _speed(predictions: Sequence[Prediction], seconds: Sequence[float]) -> str:
    """How long the same answers took again."""
    middle, fewest, most = (output.milliseconds(each) for each in (median(seconds), min(seconds), max(seconds)))
    answers = "1 answer" if len(predictions) == 1 else f"{len(predictions)} answers"
    said = f"{answers} in {middle} ({fewest} to {most} in {len(seconds)} repeats)"
    tokens = [prediction.tokens for prediction in predictions if prediction.tokens is not None]
    return f"{said}: {sum(tokens) / median(seconds):.0f} tokens a second, prompts' reading included" if tokens else said


def _answers(predictions: Sequence[Prediction]) -> str:
    """The answers, one a line; if one has several lines itself, with a blank line between them."""
    scores = ["" if each.score is None else f"  ({each.score:.1%})" for each in predictions]
    answers = [f"{each.label}{score}" for each, score in zip(predictions, scores, strict=True)]
    return ("\n\n" if any("\n" in answer for answer in answers) else "\n").join(answers)


def _check_system(task: TaskEntry, system: str | None) -> None:
    """Refuse a system message for a task that reads none, and one that no tokenizer takes."""
    if system is None:
        return
    if not task.takes_conversations:
        read = "images" if task.takes_images else "plain texts"
        raise ConfigError(f"run: expected no '--system', since {task.name} reads {read}, found {shown(system)}")
    if not is_unicode(system):  # an argument that isn't UTF-8 arrives as lone surrogates
        raise ConfigError(f"run: expected UTF-8 text after '--system', found {shown(system)}")


def _conversation(system: str, text: str) -> Messages:
    return [{"role": "system", "content": system}, {"role": "user", "content": text}]


def _images(task: str, images: list[str] | None, texts: list[str] | None) -> list[str]:
    """The images to run on."""
    if texts or not images:
        found = "a text" if texts else "none"
        raise ConfigError(f"run: expected '--image FILE', since {task} reads images, found {found}")
    return [str(Path(image)) for image in images]


def _inputs(task: str, images: list[str] | None, texts: list[str] | None) -> list[str]:
    """The texts to run on: the arguments; without any, or with a lone ``-``, the lines of standard input."""
    if images:
        raise ConfigError(f"run: expected texts, since {task} reads texts, found '--image'")
    if texts == ["-"]:
        texts = None
    inputs = texts or _lines()
    for number, text in enumerate(inputs, 1):
        if not is_unicode(text):  # what isn't UTF-8 arrives as lone surrogates
            raise _not_utf8(f"text {number}" if texts else f"line {number} of standard input")
    # A blank text goes to the task, as from any client. A model that makes no token of it refuses it.
    if not inputs:
        raise ConfigError("run: expected a text as argument or on standard input")
    return inputs


def _lines() -> list[str]:
    """The lines of standard input; none where it is empty."""
    if sys.stdin.isatty():
        output.hint("texts, one a line; Ctrl-D ends them")
    try:
        # Some editors put a byte order mark before a file; it is no part of the first text.
        text = sys.stdin.read().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = 1 + error.object[: error.start].count(b"\n")
        raise _not_utf8(f"line {line} of standard input") from error
    except OSError as error:  # nohup lets nothing be read
        why = error.strerror or error
        raise ConfigError(f"run: cannot read standard input: {why}; give texts as arguments") from error
    return text.removesuffix("\n").split("\n") if text else []


def _not_utf8(where: str) -> ConfigError:
    return ConfigError(f"run: {where} isn't UTF-8; convert it, for example with iconv -f LATIN1 -t UTF-8")


def eval_(
    bundle: BundlePath,
    task: Annotated[
        list[str] | None, typer.Option("--task", "-t", help="Only these tasks.", autocompletion=task_names)
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK=FILE", help="Where a task's held-out data is on this machine; may be repeated."),
    ] = None,
    budget: Budget = None,
    rows: Rows = None,
    dtype: Dtype = "auto",
    backend: Backend = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure each task's metric through the engine, on the held-out data that it was compiled with.

    The data is looked for by the name that the bundle has for it, beside the bundle and in the working directory, and
    where the machine that compiled it remembers it; `--data` says where it is otherwise.
    The dense model's metric was measured when the bundle was compiled. Held-out data in Parquet needs
    `weightpager[compile]`.

    Example: `weightpager eval assistant.bundle --task spam --data spam=spam.test.jsonl`
    """
    from weightpager.evaluation import measure

    moved = dict(map(_moved, data or ()))
    with opened(bundle, task or (), budget, dtype, rows, backend) as engine, progress(quiet or json) as stages:
        for name in moved:
            engine.bundle.task(name)
        measured = measure(engine, task or list(engine.bundle.tasks), stages, moved)
    if json:
        output.print_json({"tasks": measured})
        return
    output.table(
        str(bundle),
        ["task", "metric", "dense", "sparse", "items"],
        [line for row in measured for line in _score_lines(row)],
    )
    output.explain("brackets")
    if any(row.dense is None for row in measured):
        output.say("note: '-' where the held-out data is no longer what the dense model was measured on.")


def _moved(data: str) -> tuple[str, Path]:
    """A task's name, and where its data is."""
    name, equals, file = data.partition("=")
    if not (name and equals and file):
        raise ConfigError(f"eval: expected '--data TASK=FILE', found {shown(data)}")
    return name, Path(file)


def _score_lines(row: TaskScore) -> list[list[object]]:
    """A task's lines of the table: its metric, then the others that it chooses."""
    dense, sparse = output.measured(row.dense, row.dense_interval), output.measured(row.sparse, row.sparse_interval)
    others = [
        ["", other.metric, output.measured(other.dense, None), output.measured(other.sparse, None), row.items]
        for other in row.others
    ]
    return [[row.name, row.metric, dense, sparse, row.items], *others]


def export(
    bundle: BundlePath,
    task: TaskName,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory to create, or a .gguf file.", show_default=False)],
    json: Json = False,
) -> None:
    """Export a task as an ordinary dense-with-zeros transformers directory. Needs `weightpager[torch]`.

    Its weights are exactly those that the task multiplies with, so in float32 where pages are int4 or int8. Texts may
    still differ at near ties: beside such weights weightpager's kernels round activations, too.

    Example: `weightpager export assistant.bundle --task spam --out spam-hf/`

    A name that ends in `.gguf` gets llama.cpp's LoRA file instead, of a task that differs from the dense model in its
    low-rank parts alone. Needs `gguf`.
    """
    with extra("torch"):
        from weightpager.backends.torch.export import export_task, layers_left_out
        from weightpager.backends.torch.gguf_lora import SUFFIX, export_lora
        from weightpager.readers.tokenizer import open_tokenizer

    opened = Bundle.open(bundle)
    if out.suffix == SUFFIX:
        written = export_lora(opened, task, out)
        if json:
            output.print_json({"task": task, "out": str(written)})
        else:
            output.say(f"{written}: {task}, for llama.cpp's --lora beside the dense model")
        if opened.task(task).system is not None:
            output.hint(f"{task} begins conversations with a system message, which the file doesn't hold")
        return
    layers = layers_left_out(opened, task)
    written = export_task(opened, task, out, layers)
    left_out = [number for numbers in layers.values() for number in numbers]
    if json:
        output.print_json({"task": task, "out": str(written)} | ({"left_out": left_out} if left_out else {}))
    else:
        output.say(f"{written}: {task}, for transformers' from_pretrained")
        if opened.task(task).dropped:
            which = f"layers {', '.join(map(str, left_out))} are left out" if left_out else "no layer is left out"
            output.say(f"of what {task} does without, {which}; the rest is zeros")
    entry = opened.task(task)
    if entry.writes and not entry.add_bos_token and open_tokenizer(opened).begin_ids:
        output.hint(
            f"{task} learnt from texts without the tokens that its tokenizer puts in front of one, and reads prompts "
            "without them: call the tokenizer with add_special_tokens=False"
        )
