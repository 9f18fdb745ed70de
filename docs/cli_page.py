"""``python -m docs.cli_page > docs/cli.md`` writes the page of all commands."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo

from weightpager.cli.app import application
from weightpager.cli.command import VARIABLES

_HEAD = """# Commands

Made by `python -m docs.cli_page > docs/cli.md`; `weightpager COMMAND --help` says the same.

A flag overrides the environment variable of the same option, and that overrides the default. Options by which something
is removed or overwritten have no variable: one that was left in a shell would do it at the next run.

Exit code 2 is wrong usage, 1 a failure, 130 Ctrl-C. Hints at what to do next go to standard error.

`weightpager --install-completion` completes commands, options and the names of a bundle's tasks in bash, zsh, fish and
PowerShell. In zsh the first Tab of a new shell only loads what was installed; the second one completes.
"""

_VARIABLES = """## Other variables

| environment | |
|---|---|"""


def page() -> str:
    """The page, as Markdown."""
    by_purpose: dict[str, list[str]] = {}
    for name, purpose, callback in verbs(application()):
        by_purpose.setdefault(purpose, []).append(_command(name, callback))
    sections = (f"## {purpose}\n\n" + "\n".join(found) for purpose, found in by_purpose.items())
    others = (f"| `{name}` | {words} |" for name, words in VARIABLES.items())
    return "\n".join([_HEAD, *sections, _VARIABLES, *others, ""])


def verbs(of: typer.Typer, above: str = "", purpose: str = "") -> Iterator[tuple[str, str, Callable[..., Any]]]:
    """Each command's name, with the names of the groups that it is in, what it is for, and its function."""
    for command in of.registered_commands:
        if command.callback:
            named = f"{above}{command.name or command.callback.__name__}"
            yield named, purpose or str(command.rich_help_panel), command.callback
    for group in of.registered_groups:
        if group.typer_instance:
            yield from verbs(group.typer_instance, f"{above}{group.name} ", str(group.rich_help_panel))


def _command(name: str, callback: Callable[..., Any]) -> str:
    parameters = list(_parameters(callback))
    arguments = [
        _metavar(key, info) + ("..." if get_origin(kind) is list else "")
        for key, info, kind, _ in parameters
        if isinstance(info, ArgumentInfo)
    ]
    rows = [_row(name, *parameter) for parameter in parameters]
    usage = " ".join(["weightpager", name, *arguments, *(["[OPTIONS]"] if len(rows) > len(arguments) else [])])
    table = ["| | environment | |", "|---|---|---|", *rows] if rows else []
    return "\n".join([f"### {name}\n", f"```text\n{usage}\n```\n", f"{inspect.getdoc(callback)}\n", *table, ""])


def _parameters(callback: Callable[..., Any]) -> Iterator[tuple[str, ArgumentInfo | OptionInfo, Any, Any]]:
    """Each parameter's name, its typer description, its type and its default."""
    hints = get_type_hints(callback, include_extras=True)
    for key, parameter in inspect.signature(callback).parameters.items():
        kind, info = get_args(_annotated(hints[key]))
        yield key, info, kind, parameter.default


def _annotated(hint: Any) -> Any:
    """The annotated hint inside of the `Optional` that Python 3.10 adds where a default is None."""
    return hint if get_origin(hint) is Annotated else next(part for part in get_args(hint) if part is not NoneType)


def _metavar(key: str, info: ArgumentInfo | OptionInfo) -> str:
    return info.metavar or key.upper()


def _row(command: str, key: str, info: ArgumentInfo | OptionInfo, kind: Any, default: Any) -> str:
    words = [info.help or ""]
    if isinstance(info, ArgumentInfo):
        return _cells(f"`{_metavar(key, info)}`", "", " ".join(words + _default(default)))
    flags = ", ".join(f"`{flag}`" for flag in _flags(info) or [f"--{key.replace('_', '-')}"])
    value = info.metavar or _value(kind)
    return _cells(
        f"{flags} {value}".strip(),
        f"`WEIGHTPAGER_{command}_{key}`".upper().replace(" ", "_") if info.allow_from_autoenv else "",
        " ".join(words + _default(default)),
    )


def _flags(info: OptionInfo) -> list[str]:
    """The flags that are stated. In an annotation, typer takes the first one for the default until it runs."""
    return [flag for flag in (info.default, *(info.param_decls or ())) if isinstance(flag, str)]


def _cells(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _value(kind: Any) -> str:
    """The placeholder for a value of this type; empty for a flag."""
    if get_origin(kind) in (Union, UnionType):
        kind = next(part for part in get_args(kind) if part is not NoneType)
    if get_origin(kind) is list:
        return _value(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    return {bool: "", Path: "PATH", str: "TEXT", int: "NUMBER", float: "NUMBER"}[kind]


def _default(default: Any) -> list[str]:
    if default is inspect.Parameter.empty:
        return ["Required."]
    return [] if default is None or isinstance(default, bool) else [f"Default: `{default}`."]


if __name__ == "__main__":
    typer.echo(page(), nl=False)
