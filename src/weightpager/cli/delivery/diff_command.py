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
    found = difference(Bundle.open(old), Bundle.open(new))
    if json:
        output.print_json(found)
        return
    _shares("task", found.tasks)
    _shares("layer", found.layers)
    output.say(
        f"{output.size(found.new_bytes)} of pages are new, {output.size(found.row_bytes)} of them hold rows; "
        f"{output.size(found.gone_bytes)} are gone"
    )
    if found.files:
        output.say("other files: " + ", ".join(f"{name} ({output.size(size)})" for name, size in found.files.items()))
    for what, names in (("added", found.added), ("removed", found.removed)):
        if names:
            output.say(f"{what}: {', '.join(names)}")


def _shares(what: str, shares: tuple[Share, ...]) -> None:
    rows = [[share.name, output.size(share.bytes), output.size(share.new)] for share in shares]
    output.table("", [what, "pages", "new"], rows)
