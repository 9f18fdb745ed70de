"""A server's state as ``weightpager top`` shows it: as much as fits into the terminal, the most important first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from weightpager.cli import output
from weightpager.cli.legend import legend
from weightpager.server.schema.status import RowStatus, Status, SwitchStatus, TaskStatus, TrafficStatus

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
    height = None if height is None else height - (found.rows is not None)
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
    yield _line(_pages(found))
    if found.rows is not None:
        yield _line(_rows(found.rows, sum(task.requests for task in found.tasks)))


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


def _rows(rows: RowStatus, requests: int) -> str:
    hits = f"{rows.hits / rows.lookups:.1%} of {rows.lookups} look-ups hit" if rows.lookups else "none looked up yet"
    read = f"{rows.faults} read, {_size(rows.bytes_read)}"
    each = f", {output.milliseconds(rows.fault_seconds / requests)} a request" if requests else ""
    return f"rows {rows.resident} of {rows.rows} in memory; {hits}, {read}{each}"


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
        f"prefetching {'pays' if ahead.active else 'rests'}: {ahead.loaded} pages, {ahead.hits} in time, "
        f"{ahead.late} late, {ahead.misses} missed, {ahead.wasted} wasted"
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
