"""``weightpager init`` and ``schema``: a task file to begin with."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from weightpager.cli import output
from weightpager.cli.options import Json
from weightpager.config import parse_size
from weightpager.errors import ConfigError
from weightpager.machine.paths import has_directory


def quoted(path: str) -> str:
    """A path as a YAML string. JSON's escapes won't do: YAML has no surrogate pairs, and folds more line breaks.

    Raises:
        ConfigError: it isn't Unicode.
    """
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"model: expected a path of Unicode text, found {path!r}; rename it") from error
    text = json.dumps(path, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in text)


_TASKS, _SCHEMA, _MODEL, _FIT = "tasks.yaml", "tasks.schema.json", "model: model\n", "# fit: 5MiB\n"
_SAMPLES = [f"{task}.{split}.jsonl" for task in ("spam", "places") for split in ("train", "test")]
_FILES = [_TASKS, *_SAMPLES, _SCHEMA]
_WRITES = "german"
"""The sample of a task that writes, which only a decoder can do: elsewhere a comment."""

_CAUSAL = ("ForCausalLM", "LMHeadModel")
"""How transformers' names of decoders end."""


def init(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder to write into.")] = Path(),
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Hugging Face model directory that the task file will name.")
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="The most that weights may take in memory. A terminal is asked for it."),
    ] = None,
    json: Json = False,
) -> None:
    """Write a task file to start from, with comments, sample data and a schema for editors.

    Overwrites nothing. If the model is a decoder, one of the sample tasks writes texts.

    Example: `weightpager init assistant/ --model all-MiniLM-L6-v2/ --fit 5MiB`
    """
    starter = _starter(model, fit or (None if json else _asked()))
    _check_free(folder, starter)
    _write(folder, starter)
    if json:
        output.print_json({"files": [folder / name for name in starter]})
        return
    output.say(f"{folder}: {', '.join(starter)}")
    if model is None or not has_directory(model):
        output.next_step(f"put a model directory at {model or folder / 'model'}; {_TASKS} tells how")
    tasks, bundle = shlex.quote(str(folder / _TASKS)), shlex.quote(str(folder / "tasks.bundle"))
    output.next_step(f"replace the sample data by yours; then weightpager compile {tasks} --out {bundle}")


def schema() -> None:
    """Print the JSON schema of task files, by which editors complete and check them.

    Example: `weightpager schema > tasks.schema.json`, and `# yaml-language-server: $schema=tasks.schema.json` as the
    first line of the task file.
    """
    typer.echo(_read(_SCHEMA), nl=False)


def _asked() -> str | None:
    """The budget that a person in front of a terminal names; None if none is there, or none is named."""
    if not _at_a_terminal():
        return None
    question = "How much memory may the weights take, such as 5MiB? Enter leaves it open"
    return typer.prompt(question, default="", show_default=False) or None


def _at_a_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _starter(model: Path | None, fit: str | None) -> dict[str, str]:
    """Name to text of the files to write. Raises `ConfigError` if the budget is no size."""
    texts = {name: _read(name) for name in _FILES}
    if fit is not None:
        parse_size(fit, "fit")
        texts[_TASKS] = texts[_TASKS].replace(_FIT, f"fit: {fit}\n")
    if model is not None:
        texts[_TASKS] = texts[_TASKS].replace(_MODEL, f"model: {quoted(str(model.absolute()))}\n")
        if _is_decoder(model):
            texts[_TASKS] = _with_writing(texts[_TASKS])
            texts |= {name: _read(name) for name in (f"{_WRITES}.train.jsonl", f"{_WRITES}.test.jsonl")}
    return texts


class _Architectures(msgspec.Struct):
    architectures: list[str] | None = None


def _is_decoder(model: Path) -> bool:
    """Whether a model's config.json says so; what is wrong with it, a compile tells."""
    try:
        config = msgspec.json.decode((model / "config.json").read_bytes(), type=_Architectures)
    except (OSError, msgspec.MsgspecError, RecursionError):
        return False
    return any(name.endswith(_CAUSAL) for name in config.architectures or ())


def _with_writing(tasks: str) -> str:
    """The task file with the task that writes as a task, and not as a comment."""
    before, _, rest = tasks.partition(f"  # {_WRITES}:\n")
    lines, blank, after = rest.partition("\n\n")
    return f"{before}  {_WRITES}:\n{lines.replace('  # ', '  ')}{blank}{after}"


def _check_free(folder: Path, names: Iterable[str]) -> None:
    """Check that no file is in the way. Raises `ConfigError` otherwise."""
    if os.path.lexists(folder) and not has_directory(folder):
        found = "a link that leads to none" if folder.is_symlink() else "a file"
        raise ConfigError(f"init: expected a folder to write into, found {found} at {folder}; name another DIR")
    there = [name for name in names if os.path.lexists(folder / name)]
    if there:
        raise ConfigError(f"init: expected none of these files in {folder}, found {', '.join(there)}; name another DIR")


def _write(folder: Path, texts: Mapping[str, str]) -> None:
    """Write all files, or none. Raises `ConfigError` if the storage refused one."""
    try:
        with ExitStack() as undo:
            for path in (*reversed(folder.parents), folder):
                if not os.path.lexists(path):
                    path.mkdir()
                    undo.callback(path.rmdir)
            for name, text in texts.items():
                with (folder / name).open("x", encoding="utf-8") as file:
                    undo.callback((folder / name).unlink)
                    file.write(text)
            undo.pop_all()
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"init: cannot write into {folder}: {reason}; nothing was written") from error


def _read(name: str) -> str:
    return (files("weightpager.cli") / "starter" / name).read_text(encoding="utf-8")
