"""``pull``: a device brings a bundle up to date, once or for ever."""

from __future__ import annotations

import random
import shlex
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Annotated

import typer

from weightpager.cli import output
from weightpager.cli.delivery.checks import checks
from weightpager.cli.options import Json, Quiet, bounded, explicit_option, extra
from weightpager.cli.progress import progress
from weightpager.config import parse_bandwidth
from weightpager.delivery.names import checked_name
from weightpager.errors import ConfigError, DeliveryError, WeightpagerError

if TYPE_CHECKING:
    from weightpager.delivery.pulling.pull import Pulled

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
        from weightpager.delivery.sources.open_source import open_source

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
