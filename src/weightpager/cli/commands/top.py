"""``weightpager top``: a server's state, live."""

from __future__ import annotations

import http.client
import re
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Annotated, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPHandler, ProxyHandler, Request, build_opener

import typer
from pydantic import TypeAdapter, ValidationError
from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from weightpager.cli import output
from weightpager.cli.options import Json, TokenFile, bounded
from weightpager.cli.output import legend
from weightpager.engine.report import EngineFigures
from weightpager.errors import ConfigError, WeightpagerError
from weightpager.runtime.memory.feature_cache import FeatureReport
from weightpager.runtime.memory.prefix_cache import PrefixReport
from weightpager.runtime.row_report import RowReport
from weightpager.server.status import BundleStatus, Status, SwitchStatus, TaskStatus, TrafficStatus

_IN_WORDS = ("budget", "slots", "resident_pages", "working_set_pages", "bytes_read")
_SHADES = " ░▒▓█"
_SWITCHES = 8
_LEAST_SWITCHES = 2
_FORETOLD = 4
_NAME = 18
"""Characters of a task's name, at most, if there is little room."""

_FRAME = 10
"""Lines besides those of tasks and switches, without the bar, which is drawn if there is room for it."""

_BESIDE_LAYERS = _NAME + 32
"""Characters of a task's other columns."""

_WRONG = "bold red"


def view(found: Status, width: int, height: int | None = None) -> RenderableType:
    """The state as people read it.

    Args:
        found: the state.
        width: of the terminal, in characters.
        height: in lines; None for any.
    """
    shown = (found.bundles, found.rows, found.features, found.prefixes)
    more = sum(each is not None for each in shown) + bool(_others(found))
    height = None if height is None else height - more
    tasks, switches = _lines(len(found.tasks), min(_SWITCHES, len(found.switches)), height)
    # Padded, the bar ends its line.
    bar = [Padding(ProgressBar(total=max(1, found.budget), completed=sum(found.memory.values())), 0)]
    return Group(
        *(bar if height is None or height > _FRAME + tasks + switches else []),
        *_head(found),
        _tasks(found, tasks, width),
        *_switches(found, switches),
        _ahead(found),
        _next(found),
        _line(legend("arena", "private"), "dim"),
    )


def _lines(tasks: int, switches: int, height: int | None) -> tuple[int, int]:
    """How many tasks and how many switches the terminal has room for."""
    if height is None:
        return tasks, switches
    room = max(_LEAST_SWITCHES + 1, height - _FRAME)
    shown = min(tasks, room - min(_LEAST_SWITCHES, switches))
    return shown, min(switches, room - shown)


def _line(text: str | Text, style: str = "") -> Text:
    """One line of the terminal, whatever its width."""
    line = Text(text, style) if isinstance(text, str) else text
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _head(found: Status) -> Iterator[RenderableType]:
    running = f"{found.running} running, " if found.running else ""
    waiting = f"{running}{sum(task.waiting for task in found.tasks)} of {found.queue_limit} waiting"
    started = f"weightpager {found.version}  {found.state}  up {_span(found.uptime)}"
    yield _line(f"{started}  {waiting}  kernel {found.kernel}", "bold")
    if found.traffic is not None:
        yield _line(_traffic(found.traffic))
    used = sum(found.memory.values())
    process = "" if found.process_bytes is None else f"; the whole process {_size(found.process_bytes)}"
    yield _line(f"budget {_size(used)} of {_size(found.budget)}{process}")
    parts = [f"{name.replace('_', ' ')} {_size(count)}" for name, count in found.memory.items() if count]
    yield _line(", ".join(parts))
    if found.bundles is not None:
        yield _line(_bundles(found.bundles))
    yield _line(_pages(found))
    if found.rows is not None:
        yield _line(_rows(found.rows, sum(task.requests for task in found.tasks)))
    if found.features is not None:
        yield _line(_features(found.features))
    if found.prefixes is not None:
        yield _line(_prefixes(found.prefixes))
    if others := _others(found):
        yield _line(", ".join(others))


def _others(found: Status) -> list[str]:
    """The figures that no line has words of its own for."""
    names = [figure.name for figure in fields(EngineFigures) if figure.metadata and figure.name not in _IN_WORDS]
    return [f"{name.replace('_', ' ')} {getattr(found, name)}" for name in names]


def _traffic(traffic: TrafficStatus) -> Text:
    if not traffic.requests:
        return Text("no requests in the last minute", "dim")
    text = Text(f"last minute: {traffic.requests / max(1e-9, traffic.seconds):.1f} requests/s")
    for status, count in traffic.errors.items():
        text.append(f", {count} × {status}", _WRONG)
    if traffic.median_seconds is not None and traffic.p95_seconds is not None:
        text.append(f", half in {_span(traffic.median_seconds)}, 95% in {_span(traffic.p95_seconds)}")
    return text


def _pages(found: Status) -> Text:
    words = f"arena {found.resident_pages} of {found.slots} slots; latest tasks need {found.working_set_pages} pages"
    return Text(f"{words}, more than fit", _WRONG) if found.working_set_pages > found.slots else Text(words)


def _bundles(bundles: Sequence[BundleStatus]) -> str:
    """How much of its share each bundle uses, and which of them sleep."""
    awake = [f"{bundle.name} {_size(bundle.used)} of {_size(bundle.share)}" for bundle in bundles if bundle.awake]
    return ", ".join([*awake, *(f"{bundle.name} asleep" for bundle in bundles if not bundle.awake)])


def _rows(rows: RowReport, requests: int) -> str:
    hits = f"{rows.hits / rows.lookups:.1%} of {rows.lookups} look-ups hit" if rows.lookups else "none looked up yet"
    read = f"{rows.faults} read, {_size(rows.bytes_read)}"
    each = f", {output.milliseconds(rows.fault_seconds / requests)} a request" if requests else ""
    return f"rows {rows.resident} of {rows.rows} in memory; {hits}, {read}{each}"


def _features(features: FeatureReport) -> str:
    asked = features.hits + features.misses
    hits = f"{features.hits / asked:.1%} of {asked} pictures were kept" if asked else "none asked about yet"
    return f"features of {features.kept} pictures in memory, {_size(features.bytes)}; {hits}, {features.evicted} went"


def _prefixes(prefixes: PrefixReport) -> str:
    asked = prefixes.hits + prefixes.misses
    hits = f"{prefixes.hits / asked:.1%} of {asked} tokens weren't read again" if asked else "none come again yet"
    return f"beginnings of prompts {_size(prefixes.bytes)}; {hits}, {prefixes.evicted} pieces went"


def _tasks(found: Status, count: int, width: int) -> RenderableType:
    view = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for number, column in enumerate(("task", "in memory", "waiting", "requests", "layers")):
        view.add_column(column, justify="left" if number in (0, 4) else "right", no_wrap=True)
    shown = _foremost(found, count)
    most = _NAME if width < 2 * _BESIDE_LAYERS else width
    for task in shown:
        name = task.name if len(task.name) <= most else f"{task.name[: most - 1]}…"
        style = "bold green" if task.name == found.current else ""
        layers = "".join(_shade(here, need) for here, need in _fitting(task.layers, width - _BESIDE_LAYERS))
        share = Text(f"{task.resident:.0%}") if task.available else Text("too large", "red")
        view.add_row(Text(name, style), share, str(task.waiting), str(task.requests), layers)
    if len(shown) < len(found.tasks):
        view.add_row(Text(f"… and {len(found.tasks) - len(shown)} more", "dim"))
    return view


def _foremost(found: Status, count: int) -> Sequence[TaskStatus]:
    """All tasks, or those that matter most in one line less than ``count``."""
    if count >= len(found.tasks):
        return found.tasks
    order = sorted(found.tasks, key=lambda task: (task.name != found.current, -task.waiting, -task.requests))
    chosen = {task.name for task in order[: count - 1]}
    return [task for task in found.tasks if task.name in chosen]


def _fitting(layers: Sequence[tuple[int, int]], room: int) -> list[tuple[int, int]]:
    """The layers; if there is no room for all of them, neighbours are put together."""
    count = min(len(layers), max(1, room))
    edges = [len(layers) * number // count for number in range(count + 1)] if count else [0]
    groups = [layers[start:end] for start, end in pairwise(edges)]
    return [(sum(here for here, _ in group), sum(need for _, need in group)) for group in groups]


def _shade(here: int, need: int) -> str:
    return _SHADES[-(-here * (len(_SHADES) - 1) // need)] if need else "·"


def _switches(found: Status, count: int) -> Iterator[RenderableType]:
    yield _line(f"latest of {found.switches_total} switches", "italic")
    view = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    for justify in ("right", "left", "right", "left"):
        view.add_column(justify=justify, no_wrap=True, overflow="ellipsis")
    for switch in list(reversed(found.switches))[:count]:
        view.add_row(*_cells(found, switch))
    if count:
        yield view


def _cells(found: Status, switch: SwitchStatus) -> tuple[str, str, str, str]:
    pair = f"{switch.from_task or '(nothing)'} → {switch.to_task}"
    ago = round(max(0.0, found.time - switch.time))
    return f"{_span(ago)} ago", escape(pair), output.size(switch.bytes), f"in {output.milliseconds(switch.seconds)}"


def _ahead(found: Status) -> RenderableType:
    ahead = found.prefetch
    if ahead is None:
        return _line("nothing is prefetched", "dim")
    return _line(
        f"prefetching {'pays' if ahead['active'] else 'rests'}: {ahead['loaded']} pages, {ahead['hits']} in time, "
        f"{ahead['late']} late, {ahead['misses']} missed, {ahead['wasted']} wasted"
    )


def _next(found: Status) -> RenderableType:
    forecast = found.forecast
    if forecast is None:
        return _line("nothing to foretell from yet", "dim")
    likeliest = sorted(zip(forecast.next, found.tasks, strict=True), key=lambda pair: -pair[0])[:_FORETOLD]
    named = ", ".join(f"{task.name} {chance:.0%}" for chance, task in likeliest if chance)
    return _line(
        f"next: {named or 'unknown'}; {forecast.foreseen:.0%} of {forecast.switches} switches foreseen, "
        f"log loss {forecast.log_loss_bits:.2f} bits"
    )


def _size(count: float) -> str:
    """A size in few characters."""
    number, unit = output.size(count).split()
    return f"{number if float(number) < 100 else round(float(number))} {unit}"


def _span(seconds: float) -> str:
    """A duration in few characters."""
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms" if seconds else "0 s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


_MOST_BYTES = 64 * 2**20
_MOST_SHOWN = 80
_UNIX = "unix:"
_PRINTABLE = re.compile(r"[!-~]+")


def top(
    url: Annotated[str, typer.Argument(metavar="[URL]", help="Address of the server.")] = "http://127.0.0.1:8000",
    interval: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", callback=bounded, help="Time between two looks.")
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """Watch a server: pages in memory, switches, who waits. Loads nothing; Ctrl-C ends it.

    A server that listens at a Unix socket is `unix:/run/weightpager.sock`. In a pipe each look follows the one before.

    Example: `weightpager top http://127.0.0.1:8000`
    """
    from weightpager.server.scheduling.settings import read_token

    token = read_token(token_file)
    status = read_status(url, token)
    if json:
        output.print_json(status)
    elif once:
        _print(status)
    elif output.console().is_terminal:
        with Live(console=output.console(), screen=True, auto_refresh=False) as live:
            while True:
                live.update(view(status, *output.console().size), refresh=True)
                time.sleep(interval)
                status = read_status(url, token)
    else:
        while True:
            _print(status)
            sys.stdout.flush()  # whoever reads the pipe sees it now
            time.sleep(interval)
            status = read_status(url, token)


def _print(status: Status) -> None:
    output.console().print(view(status, output.console().width))


def read_status(url: str, token: str | None = None, timeout: float = 10.0) -> Status:
    """A server's state, if it answers within ``timeout`` seconds.

    Raises:
        ConfigError: the URL isn't one of HTTP.
        WeightpagerError: no weightpager server answers there, or it asks for a token.
    """
    content = _fetch(url, token, timeout)
    try:
        return TypeAdapter(Status).validate_json(content)
    except ValidationError as error:
        details = error.errors(include_url=False)
        detail = next((each for each in details if each["loc"] == ("version",)), details[0])  # what no other has
        found = ": ".join([*map(str, detail["loc"][:1]), detail["msg"]])
        raise WeightpagerError(f"expected a weightpager server at {url}, found another answer: {found}") from error


def _fetch(url: str, token: str | None, timeout: float) -> bytes:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    if url.startswith(_UNIX):
        base, opener = "http://localhost", build_opener(ProxyHandler({}), _AtSocket(url.removeprefix(_UNIX)))
    else:
        base, opener = _checked(url), build_opener()
    request = Request(f"{base.rstrip('/')}/status", headers=headers)  # noqa: S310 - checked
    try:
        with opener.open(request, timeout=timeout) as answer:
            content: bytes = answer.read(_MOST_BYTES)
            return content
    except HTTPError as error:
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


class _AtSocket(HTTPHandler):
    """Asks the server that listens at a Unix socket, whatever host a URL names."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def http_open(self, req: Request) -> http.client.HTTPResponse:
        def connection(host: str, **settings: Any) -> _UnixConnection:
            return _UnixConnection(self._path, host, **settings)

        return self.do_open(connection, req)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, host: str, timeout: float) -> None:
        super().__init__(host, timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _checked(url: str) -> str:
    """The URL. Raises `ConfigError` unless it is one of HTTP."""
    try:
        parts = urlsplit(url)
        well = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and _PRINTABLE.fullmatch(url)
    except ValueError:  # the address or the port isn't one
        well = False
    if not well:
        raise ConfigError(f"expected the URL of a server, such as http://127.0.0.1:8000, found {url!r}")
    return url
