"""The verbs of the command line, and the environment variables that stand in for their options."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperCommand

from weightpager.cli import output
from weightpager.errors import WeightpagerError

VERBS = {
    "Make a bundle": {
        "init": "init",
        "schema": "init",
        "trim": "trim",
        "compile": "compile",
        "cache": "cache",
    },
    "Look at it, and look after it": {
        "ls": "ls",
        "inspect": "inspect",
        "plan": "plan",
        "verify": "maintain",
        "add": "maintain",
        "remove": "maintain",
        "repack": "maintain",
        "gc": "maintain",
        "export": "run",
    },
    "Run it": {
        "doctor": "doctor",
        "run": "run",
        "eval": "run",
        "serve": "serve",
        "ps": "ps",
        "top": "top",
    },
    "Bring it to many devices": {
        "publish": "publish",
        "pull": "pull",
        "rollback": "pull",
        "diff": "diff",
    },
    "Measure": {
        "demo": "demo",
        "bench": "bench",
        "simulate": "simulate",
    },
}
"""Where each verb is, under what it is for: a function of its name, with a ``_`` where Python knows another such name,
or a group ``app``."""

VARIABLES = {
    "WEIGHTPAGER_THREADS": "Threads of native code, 1 to 256. Default: as `OMP_NUM_THREADS`, or all usable cores.",
    "WEIGHTPAGER_ISA": ("Kernels, such as `avx2`; `weightpager doctor` lists them. Default: the best that run here."),
    "WEIGHTPAGER_BACKEND": "`native` or `torch`, where a command's `--backend` is `auto`.",
    "WEIGHTPAGER_CACHE": ("Directory of downloads and of what compiles share. Default: in the user's cache directory."),
    "WEIGHTPAGER_CACHE_LIMIT": "Size that compiles may keep there; 0 keeps nothing. Default: `8GiB`.",
}
"""Those that stand in for no option, and what they say."""

_PREFIX = "WEIGHTPAGER_"


class Command(TyperCommand):
    """A verb whose help names its variables whole, however narrow, and whose errors name those that were set."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        for parameter in self.params:
            # Beside an option there is room for a part of its variable's name; the end of the help has all.
            parameter.show_envvar = False  # type: ignore[attr-defined]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        if twins := ", ".join(f"`{variable}`" for variable in self._twins(ctx)):
            self.epilog = f"Environment variables that stand in for options: {twins}."
        super().format_help(ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for line in misspelt([*self._twins(ctx)], f"{ctx.auto_envvar_prefix}_"):
            output.errors().print(f"warning: {line}", style="yellow")
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            if error.param is not None and _from_environment(ctx, error.param):
                error.message = f"{error.message.rstrip('.')}; {_twin(ctx, error.param)} says so."
            raise
        except WeightpagerError:
            self._name_variables(ctx)
            raise

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except WeightpagerError:
            self._name_variables(ctx)
            raise

    def _name_variables(self, ctx: Any) -> None:
        """Name the variables that have set options: people forget what an earlier line of a shell has exported."""
        for variable, option in self._twins(ctx).items():
            if _from_environment(ctx, option):
                output.errors().print(f"note: {variable} has set {option.opts[0]}", style="dim")

    def _twins(self, ctx: Any) -> dict[str, Any]:
        """Variable → the option that it stands in for."""
        return {
            _twin(ctx, parameter): parameter
            for parameter in self.params
            if parameter.param_type_name == "option" and getattr(parameter, "allow_from_autoenv", False)
        }


def _twin(ctx: Any, option: Any) -> str:
    return f"{ctx.auto_envvar_prefix}_{option.name.upper()}"


def _from_environment(ctx: Any, option: Any) -> bool:
    source = ctx.get_parameter_source(option.name)
    return source is not None and source.name == "ENVIRONMENT"


def misspelt(twins: list[str], own: str) -> Iterator[str]:
    """Lines about variables that nothing reads and that somebody may have meant for others.

    What begins as another verb's variables do is that verb's business, unless it is nearly one of `VARIABLES`.
    ``twins`` stand in for options of this verb; ``own`` is how its names begin, which nobody else can have meant.
    """
    starts = tuple(f"{_PREFIX}{verb.upper()}_" for verbs in VERBS.values() for verb in verbs)
    for variable in sorted(os.environ.keys() - {*twins, *VARIABLES}):
        if not variable.startswith(_PREFIX):
            continue
        others = variable.startswith(starts) and not variable.startswith(own)
        names = [each.removeprefix(_PREFIX) for each in ([*VARIABLES] if others else [*twins, *VARIABLES])]
        close = difflib.get_close_matches(variable.removeprefix(_PREFIX), names, 1, cutoff=0.8)
        if close:
            yield f"nothing reads {variable}; did you mean {_PREFIX}{close[0]}?"
        elif variable.startswith(own):
            yield f"nothing reads {variable}; --help names the variables of this command"
