"""Arguments and options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from weightpager.bundle.reader import read_manifest
from weightpager.config import LONGEST
from weightpager.errors import BundleError, ConfigError
from weightpager.machine.packages import TORCH, check_installed, not_installed


def explicit_option(*flags: str, **settings: Any) -> Any:
    """An option by which something is removed or overwritten; it takes no environment variable.

    A variable that was left in a shell must not do that at the next run.
    """
    return typer.Option(*flags, allow_from_autoenv=False, **settings)


BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle directory.", show_default=False)]
BundlePaths = Annotated[
    list[Path],
    typer.Argument(metavar="BUNDLE", help="Bundle directory, or several that share the budget.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Bundle directory to create.", show_default=False)]
Force = Annotated[bool, explicit_option("--force", help="Replace an existing bundle.")]
Budget = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Memory for weights, such as 64MiB. Default: all that the bundle holds."),
]
Rows = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Part of the budget for rows of embedding tables that come on demand. Default: what all pages leave.",
    ),
]
Backend = Annotated[
    Literal["auto", "native", "torch"],
    typer.Option(help="What runs tasks. auto: native code where it can, and torch otherwise."),
]
Dtype = Annotated[
    Literal["auto", "bfloat16"],
    typer.Option(help="What tasks compute in. auto: as the model was; bfloat16: faster where the CPU has it."),
]
TokenFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="File with the server's token, if it asks for one.")
]
Storage = Annotated[
    str, typer.Option(metavar="SIZE/s", help="Bandwidth of the storage that predictions assume, such as 300MB/s.")
]


def finite(option: typer.CallbackParam, value: float | None) -> float | None:
    """The callback of an option that takes a number: no lower bound refuses inf, nor nan in every version of typer.

    Raises:
        ConfigError: the number isn't finite.
    """
    if value is not None and not math.isfinite(value):
        raise ConfigError(f"{option.opts[0]}: expected a finite number, found {value}")
    return value


def bounded(option: typer.CallbackParam, value: float | None) -> float | None:
    """The callback of an option that takes a time: as `finite`, and not too long for clocks or for a sum of such times.

    Raises:
        ConfigError: the number isn't finite, or is over `LONGEST`.
    """
    finite(option, value)
    if value is not None and value > LONGEST:
        unit = "milliseconds" if option.metavar == "MS" else "seconds"
        raise ConfigError(f"{option.opts[0]}: expected at most {LONGEST:g} {unit}, found {value:g}")
    return value


_COMPILE = (*TORCH, "pyarrow", "scipy", "yaml")

PACKAGES = {
    "torch": TORCH,
    "compile": _COMPILE,
    "demo": (*_COMPILE, "jinja2", "matplotlib"),
    "publish": ("tuf", "cryptography"),
    "pull": ("tuf", "urllib3"),
    "ray": ("ray",),
    "serve": ("fastapi", "jinja2", "prometheus_client", "uvicorn"),
}
"""What an extra's commands can't do without: looked for before seconds are spent on importing torch."""

_PURPOSE = "to use this command"


@contextmanager
def extra(name: str) -> Iterator[None]:
    """A block of imports that need an extra of the package. Raises `ConfigError` if it isn't installed."""
    for package in PACKAGES.get(name, ()):
        check_installed(package, name, _PURPOSE)
    try:
        yield
    except ModuleNotFoundError as error:
        raise not_installed(error.name, name, _PURPOSE) from error


def task_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Tasks of the bundle that the command line names, read from its manifest; none if there is no such bundle."""
    # While the value of an option is being completed, arguments are split off the line, but not yet parsed.
    named = ctx.params.get("bundles") or [ctx.params.get("bundle") or next(iter(ctx.args), None)]
    bundle = named[0]
    if bundle is None:
        return []
    try:
        # The shell doesn't expand a line that it completes.
        manifest = read_manifest(Path(bundle).expanduser())
        return [task.name for task in manifest.tasks if task.name.startswith(incomplete)]
    except (BundleError, OSError, RuntimeError):  # RuntimeError: a ~ names a user without a home
        return []


TaskName = Annotated[
    str, typer.Option("--task", "-t", help="Name of a task.", show_default=False, autocompletion=task_names)
]
"""One task of the bundle."""
