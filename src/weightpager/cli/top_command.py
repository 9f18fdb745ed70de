"""``top``: what a server does, live in a terminal."""

from __future__ import annotations

import http.client
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
from pydantic import ValidationError
from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from weightpager.cli import output
from weightpager.cli.options import Json
from weightpager.errors import ConfigError, WeightpagerError
from weightpager.server.status_schema import Status

_SHADES = " ░▒▓█"
_MOST_BYTES = 64 * 2**20
_MOST_SHOWN = 80
_LATEST = 8
_FORETOLD = 4
_PRINTABLE = re.compile(r"[!-~]+")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(top)


def top(
    url: Annotated[str, typer.Argument(metavar="[URL]", help="Of the server.")] = "http://127.0.0.1:8000",
    interval: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Time between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File with the server's token, if it asks for one.")
    ] = None,
    json: Json = False,
) -> None:
    """Watch a server: pages in memory, switches, who waits. Loads nothing; Ctrl-C ends it.

    Example: `weightpager top http://127.0.0.1:8000`
    """
    from weightpager.server.settings import read_token

    token = None if token_file is None else read_token(token_file)
    found = read_status(url, token)
    if json:
        output.print_json(found)
    elif once:
        output.console.print(view(found))
    else:
        with Live(view(found), console=output.console, screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(interval)
                live.update(view(read_status(url, token)), refresh=True)


def read_status(url: str, token: str | None = None, timeout: float = 10.0) -> Status:
    """A server's state, if it answers within ``timeout`` seconds.

    Raises:
        ConfigError: the URL is none of HTTP.
        WeightpagerError: no weightpager server answers there, or it asks for a token.
    """
    content = _fetch(url, token, timeout)
    try:
        return Status.model_validate_json(content)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        found = ": ".join([*map(str, detail["loc"][:1]), detail["msg"]])
        raise WeightpagerError(f"expected a weightpager server at {url}, found another answer: {found}") from error


def _fetch(url: str, token: str | None, timeout: float) -> bytes:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"{_checked(url).rstrip('/')}/status", headers=headers)  # noqa: S310 - checked
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:  # noqa: S310
            content: bytes = answer.read(_MOST_BYTES)
            return content
    except urllib.error.HTTPError as error:
        error.close()
        hint = "; it asks for --token-file" if error.code == 401 else ""
        raise WeightpagerError(f"expected a weightpager server at {url}, found status {error.code}{hint}") from error
    except http.client.HTTPException as error:
        found = repr(str(error).strip())[:_MOST_SHOWN]
        raise WeightpagerError(f"expected a weightpager server at {url}, found no HTTP: {found}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise WeightpagerError(
            f"expected a weightpager server at {url}, found none: {getattr(reason, 'strerror', None) or reason}; "
            "'weightpager ps' lists those that run, 'weightpager serve' starts one"
        ) from error


def _checked(url: str) -> str:
    """The URL, if it is one that may be asked.

    Raises:
        ConfigError: it isn't.
    """
    try:
        parts = urlsplit(url)
        well = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and _PRINTABLE.fullmatch(url)
    except ValueError:  # an address or a port that is none
        well = False
    if not well:
        raise ConfigError(f"expected the URL of a server, such as http://127.0.0.1:8000, found {url!r}")
    return url


def view(found: Status) -> RenderableType:
    """The state as people read it."""
    return Group(_head(found), _budget(found), _tasks(found), _switches(found), _ahead(found), _next(found))


def _head(found: Status) -> RenderableType:
    running = f"{found.running} running, " if found.running else ""
    waiting = sum(task.waiting for task in found.tasks)
    return Text(
        f"weightpager {found.version}  {found.state}  up {found.uptime:.0f} s  kernel {found.kernel}  "
        f"{running}{waiting} of {found.queue_limit} waiting",
        style="bold",
    )


def _budget(found: Status) -> RenderableType:
    used = sum(found.memory.values())
    parts = ", ".join(f"{name} {output.size(count)}" for name, count in found.memory.items() if count)
    words = f"{output.size(used)} of {output.size(found.budget)}: {parts}"
    pages = f"{found.resident_pages} of {found.slots} slots, working set {found.working_set_pages} pages"
    bar = Padding(ProgressBar(total=max(1, found.budget), completed=used, width=60), 0)  # padded, it ends its line
    return Group(bar, Text(words), Text(pages), Text())


def _tasks(found: Status) -> RenderableType:
    table = Table(title="tasks", title_justify="left")
    for number, column in enumerate(("task", "in memory", "layers", "waiting", "requests")):
        table.add_column(column, justify="left" if number in (0, 2) else "right")
    for task in found.tasks:
        name = f"[bold green]{escape(task.name)}[/]" if task.name == found.current else escape(task.name)
        layers = "".join(_shade(here, need) for here, need in task.layers)
        table.add_row(name, f"{task.resident:.0%}", layers, str(task.waiting), str(task.requests))
    return table


def _shade(here: int, need: int) -> str:
    return _SHADES[-(-here * (len(_SHADES) - 1) // need)] if need else "·"


def _ahead(found: Status) -> RenderableType:
    ahead = found.prefetch
    if ahead is None:
        return Text("nothing is loaded ahead", style="dim")
    return Text(
        f"loading ahead {'pays' if ahead.active else 'rests'}: {ahead.loaded} pages, {ahead.hits} in time, "
        f"{ahead.late} late, {ahead.misses} missed, {ahead.wasted} wasted"
    )


def _next(found: Status) -> RenderableType:
    forecast = found.forecast
    if forecast is None:
        return Text("nothing to foretell from yet", style="dim")
    likeliest = sorted(zip(forecast.next, found.tasks, strict=True), key=lambda pair: -pair[0])[:_FORETOLD]
    named = ", ".join(f"{task.name} {chance:.0%}" for chance, task in likeliest if chance)
    return Text(
        f"next: {named or 'unknown'}; {forecast.foreseen:.0%} of {forecast.switches} switches foreseen, "
        f"log loss {forecast.log_loss_bits:.2f} bits"
    )


def _switches(found: Status) -> RenderableType:
    table = Table(title=f"latest of {found.switches_total} switches", title_justify="left")
    for number, column in enumerate(("ago", "from", "to", "loaded", "took")):
        table.add_column(column, justify="left" if number in (1, 2) else "right")
    for switch in reversed(found.switches[-_LATEST:]):
        table.add_row(
            f"{max(0.0, found.time - switch.time):.0f} s",
            escape(switch.from_task or ""),
            escape(switch.to_task),
            output.size(switch.bytes),
            output.milliseconds(switch.seconds),
        )
    return table
