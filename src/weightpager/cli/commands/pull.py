"""``weightpager pull`` and ``rollback``: a device fetches a bundle's version, or goes back to the one before."""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import subprocess
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightpager.cli import output
from weightpager.cli.options import Json, Quiet, bounded, explicit_option, extra
from weightpager.cli.progress import progress
from weightpager.config import parse_bandwidth
from weightpager.delivery.version_file import checked_name
from weightpager.errors import ConfigError, DeliveryError, WeightpagerError, first_line
from weightpager.machine.panics import panics_as_errors

if TYPE_CHECKING:
    from weightpager.delivery.pulling.pull import Pulled

_SECONDS = 600
_STANDARD_ERROR = 2
"""Where a command prints: standard output may be one JSON document."""

Check = Callable[[Path], str | None]


def checks(command: str | None, rows: Path | None) -> Check | None:
    """All that was asked for, as one; None if nothing was."""
    found: list[Check] = []
    if rows is not None:
        wanted = _rows(rows)
        found.append(lambda bundle: _answer(bundle, wanted))
    if command is not None:
        found.append(lambda bundle: _run(bundle, command))
    if not found:
        return None
    return lambda bundle: next((problem for problem in (each(bundle) for each in found) if problem is not None), None)


def _run(bundle: Path, command: str) -> str | None:
    environment = os.environ | {"WEIGHTPAGER_BUNDLE": str(bundle)}
    with subprocess.Popen(  # noqa: S602 - the user's
        command, shell=True, env=environment, stdout=_STANDARD_ERROR, start_new_session=True
    ) as shell:
        try:
            code = shell.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            return f"its check didn't end within {_SECONDS} s"
        finally:
            if shell.returncode is None:  # neither the shell nor what it has started may go on
                os.killpg(shell.pid, signal.SIGKILL)
    return f"its check ended with code {code}" if code else None


def _rows(path: Path) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # other separators may be part of a text
    except (OSError, ValueError) as error:
        raise ConfigError(f"check-rows: expected JSON lines in {path}, found none: {error}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            task, text, label = _row(f"{path}:{number}", line)
            found[task].append((text, label))
    if not found:
        raise ConfigError(f"check-rows: expected at least one row in {path}, found none")
    return found


def _row(where: str, line: str) -> list[str]:
    """Task, text and label of a line."""
    try:
        row: Any = json.loads(line)
        values = [row[key] for key in ("task", "text", "label")]
    except (ValueError, TypeError, LookupError, RecursionError):
        values = [None]
    if not all(isinstance(value, str) for value in values):
        raise ConfigError(f"check-rows: {where}: expected JSON with task, text and label, found {line[:80]!r}")
    return values


def _answer(bundle: Path, rows: dict[str, list[tuple[str, str]]]) -> str | None:
    from weightpager.engine import Engine

    try:
        with panics_as_errors(), Engine.from_pretrained(bundle) as engine:
            for task, of_task in rows.items():
                answers = engine.predict(task, [text for text, _ in of_task])
                for (text, label), answer in zip(of_task, answers, strict=True):
                    if answer.label != label:
                        return f"{task}: expected {label!r} for {text[:60]!r}, found {answer.label!r}"
    except WeightpagerError as error:
        return f"its rows can't be answered: {error}"
    except Exception as error:  # noqa: BLE001 - whatever it is, such a version must not stay in use
        return f"its rows can't be answered: {type(error).__name__}: {first_line(error)}"
    return None


Into = Annotated[
    Path, typer.Option("--into", metavar="DIRECTORY", help="Directory of the device's bundles.", show_default=False)
]
BundleName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the bundle.", show_default=False)]

_JITTER = 0.2
"""Waits are so much shorter or longer by chance: thousands of devices must not ask at the same moment."""


def pull(
    repository: Annotated[
        str, typer.Argument(metavar="URL|DIRECTORY", help="Address or directory of the repository.", show_default=False)
    ],
    name: BundleName,
    into: Into,
    channel: Annotated[str, typer.Option(help="Channel whose version is taken.")] = "stable",
    version: Annotated[str | None, typer.Option(help="Version to take, whatever the channel has.")] = None,
    trust: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Root metadata that you trust; needed the first time of each NAME."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be fetched.")] = False,
    keep: Annotated[int, explicit_option(min=1, help="Versions that stay, the one in use included.")] = 2,
    limit_rate: Annotated[
        str | None, typer.Option(metavar="SIZE/s", help="Fetch no faster than this, such as 500KB/s.")
    ] = None,
    connections: Annotated[int, typer.Option(min=1, max=32, help="Connections at once.")] = 4,
    redirects: Annotated[
        bool, typer.Option("--redirects", help="Follow redirects to other hosts, too; their bytes are checked alike.")
    ] = False,
    check: Annotated[
        str | None,
        typer.Option(metavar="COMMAND", help="Command to run afterwards; if it fails, the version before comes back."),
    ] = None,
    check_rows: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON lines of task, text and label that the new version must get right."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Take a version that was rolled back.")] = False,
    watch: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=1.0, callback=bounded, help="Look again every so often, for ever."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Bring a bundle up to date: fetch the pages that this device lacks, check every byte, change over in one step.

    Needs `weightpager[pull]`. `DIRECTORY/NAME.bundle` leads to the version in use.

    Example: `weightpager pull https://example.org/repository assistant --into bundles/ --trust root.json`
    """
    with extra("pull"):
        from weightpager.delivery.pulling.pull import Wish
        from weightpager.delivery.pulling.pull import pull as pull_bundle
        from weightpager.delivery.sources import open_source

    named = {"name": name, "channel": channel, "version": version}
    for what, text in named.items():
        if text is not None:
            checked_name(what, text)
    wish = Wish(name, channel, version, _root(trust), again)
    rate = None if limit_rate is None else parse_bandwidth(limit_rate)
    checked = checks(check, check_rows)

    def look() -> None:
        opened = open_source(repository, rate, connections, redirects=redirects)
        with closing(opened) as source, progress(quiet or json) as stages:
            done = pull_bundle(
                source,
                into,
                wish,
                keep=keep,
                connections=connections,
                check=checked,
                dry_run=dry_run,
                progress=stages,
            )
        if json:
            output.print_json(done, one_line=watch is not None)
        else:
            _tell(done, name)
        if done.outcome == "rolled back":
            raise DeliveryError(
                f"{name} {done.version}: {done.problem}; {done.in_use or 'no version'} is in use, and {done.version} "
                "is not installed again unless you say --again"
            )

    if watch is None:
        look()
    else:
        _repeat(look, watch)


def _repeat(look: Callable[[], None], seconds: float) -> None:
    """Look again and again, for ever; only what no next look can mend ends it."""
    while True:
        try:
            look()
        except ConfigError:
            raise
        except WeightpagerError as error:  # the next look may do better, and the bundle in use is whole
            output.errors().print(f"error: {error}", style="red")
        sleep(seconds * random.uniform(1 - _JITTER, 1 + _JITTER))  # noqa: S311 - no secret


def _root(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise ConfigError(f"trust: expected a file of root metadata, found none at {path}: {error.strerror}") from error


def _tell(done: Pulled, name: str) -> None:
    output.say(f"{name} {done.version}: {_words(done)}")
    if done.whole_files:
        output.hint(
            "note: the server gives no parts of files, so that whole packs came; one that knows ranges saves that"
        )


def _words(done: Pulled) -> str:
    if done.outcome == "current":
        return f"in use already; {done.path}"
    if done.outcome == "refused":
        return f"was rolled back here, {done.in_use or 'none'} stays in use; --again takes it"
    if done.cost is None:
        fetched = "all of it is here"
    else:
        cost = done.cost
        fetched = (
            f"{cost.pages} of {cost.pages_in_all} pages ({output.size(cost.page_bytes)}) and "
            f"{output.size(cost.file_bytes)} of other files, of a bundle of {output.size(cost.bundle_bytes)}"
        )
    return f"{done.outcome}; {fetched}; {output.size(done.received)} came; {shlex.quote(str(done.path))}"


def rollback(
    name: BundleName,
    into: Into,
    to: Annotated[str | None, typer.Option(metavar="VERSION", help="Version to use. Default: the one before.")] = None,
    json: Json = False,
) -> None:
    """Use another version of a bundle that `pull` has installed; needs no repository.

    `pull` installs the newer version, which was in use, again only with `--again`.

    Example: `weightpager rollback assistant --into bundles/`
    """
    with extra("pull"):
        from weightpager.delivery.pulling.pull import roll_back

    done = roll_back(into, checked_name("name", name), to)
    if json:
        output.print_json(done)
    else:
        output.say(f"{name} {done.now} is in use, {done.before or 'none'} was; {done.path}")
