"""``rollback``: the version before comes back."""

from __future__ import annotations

from typing import Annotated

import typer

from weightpager.cli import output
from weightpager.cli.delivery.pull_command import BundleName, Into
from weightpager.cli.options import Json, extra
from weightpager.delivery.names import checked_name


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
