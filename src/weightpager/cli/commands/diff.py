"""``diff``: what one bundle has that another one lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weightpager.bundle import Bundle
from weightpager.cli import output
from weightpager.cli.options import Json
from weightpager.delivery.difference import Share, difference


def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="Bundle directory.", show_default=False)],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Bundle directory.", show_default=False)],
    json: Json = False,
) -> None:
    """Say what a device that has one bundle lacks of another one, by task and by layer, in bytes.

    Example: `weightpager diff assistant.bundle larger.bundle`
    """
    changes = difference(Bundle.open(old), Bundle.open(new))
    if json:
        output.print_json(changes)
        return
    _shares("task", changes.tasks)
    _shares("layer", changes.layers)
    output.say(
        f"{output.size(changes.new_bytes)} of pages are new, {output.size(changes.row_bytes)} of them hold rows; "
        f"{output.size(changes.gone_bytes)} are gone"
    )
    if changes.files:
        output.say("other files: " + ", ".join(f"{name} ({output.size(size)})" for name, size in changes.files.items()))
    for what, names in (("added", changes.added), ("removed", changes.removed)):
        if names:
            output.say(f"{what}: {', '.join(names)}")


def _shares(what: str, shares: tuple[Share, ...]) -> None:
    rows = [[share.name, output.size(share.bytes), output.size(share.new)] for share in shares]
    output.table("", [what, "pages", "new"], rows)
