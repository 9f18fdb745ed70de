"""``publish``: bundles into a repository of signed files, and the repository's keys."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from weightpager.cli import output
from weightpager.cli.options import BundlePath, Json, Quiet, explicit_option, extra
from weightpager.cli.progress import progress
from weightpager.delivery.version_file import checked_name

Repository = Annotated[
    Path, typer.Argument(metavar="DIRECTORY", help="Directory of the repository.", show_default=False)
]
Keys = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Folder of the key files. Default: DIRECTORY.keys, beside it.")
]
Days = Annotated[
    int | None, typer.Option(min=1, max=3650, help="Days until devices want a newer signature. Default: 30.")
]


class _BundleUnlessNamed(TyperGroup):
    """``publish BUNDLE …`` is ``publish bundle BUNDLE …``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        named = args if args and args[0] in self.commands else ["bundle", *args]
        return super().resolve_command(ctx, named)


app = typer.Typer(
    cls=_BundleUnlessNamed,
    no_args_is_help=True,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    help="Publish bundles for many machines, as signed files that any web server or stick can carry.\n\n"
    "Example: `weightpager publish assistant.bundle repository/`",
)


@app.command("init")
def init(
    directory: Repository,
    keys: Keys = None,
    root_keys: Annotated[int, typer.Option(min=1, max=20, help="Keys of the root role.")] = 3,
    threshold: Annotated[int, typer.Option(min=1, max=20, help="How many of them must sign a change of keys.")] = 2,
    json: Json = False,
) -> None:
    """Make an empty repository and its keys. Needs `weightpager[publish]`.

    Example: `weightpager publish init repository/`
    """
    with extra("publish"):
        from weightpager.delivery.publishing import repository

    made = repository.create(directory, keys or repository.default_keys(directory), root_keys, threshold)
    if json:
        output.print_json(made)
        return
    output.say(f"{directory}: an empty repository; a web server may give out all of it")
    output.say(f"{made.keys}: private keys, which nobody else may have:")
    output.say(
        f"  root-1 to root-{root_keys}  move each to a stick of its own, in different drawers; {threshold} of them are "
        "needed to replace keys"
    )
    output.say("  targets-1            keep it where bundles are released; who has it decides what devices run")
    output.say("  snapshot-1           keep it with timestamp-1 on the machine that runs 'weightpager publish refresh'")
    output.say("  timestamp-1          the same: devices want a new signature of both every 30 days")
    output.say(f"{made.root}: put it on every device; 'weightpager pull' takes it as --trust, once")


@app.command("bundle")
def bundle_(
    bundle: BundlePath,
    directory: Repository,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the bundle in the repository. Default: the directory's, without .bundle."),
    ] = None,
    channel: Annotated[str, typer.Option(help="Devices of this channel get it.")] = "stable",
    version: Annotated[
        str | None,
        typer.Option(
            help="Name of the version. Default: that of the same bundle, if it is there already; else the next number."
        ),
    ] = None,
    keys: Keys = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Add a bundle to a repository: only the pages that it lacks. The word `bundle` may be left out.

    The channel points to the new version then.

    A version that exists isn't written again, so that the same command with another channel promotes it.

    Example: `weightpager publish assistant.bundle repository/ --channel beta`
    """
    with extra("publish"):
        from weightpager.delivery.publishing.publish import publish
        from weightpager.delivery.publishing.repository import default_keys

    stated = name or re.sub(r"\.bundle$", "", Path(os.path.abspath(bundle)).name)  # a link has a name of its own
    for what, text in (("name", stated), ("channel", channel), ("version", version)):
        if text is not None:
            checked_name(what, text)
    with progress(quiet or json) as stages:
        done = publish(bundle, directory, keys or default_keys(directory), stated, channel, version, stages)
    if json:
        output.print_json(done)
        return
    output.say(
        f"{done.name} {done.version} is what {done.channel} gets now: {done.pages} of {done.pages_in_all} pages were "
        f"new ({output.size(done.page_bytes)}), other files {output.size(done.file_bytes)}"
    )


@app.command("refresh")
def refresh(
    directory: Repository,
    also: Annotated[
        list[str] | None, typer.Option(metavar="targets|root", help="Renew this role, too; may be given again.")
    ] = None,
    days: Days = None,
    keys: Keys = None,
    json: Json = False,
) -> None:
    """Sign again, so that devices know that they aren't shown an old copy. Run it well before 30 days are over.

    Example: `weightpager publish refresh repository/`
    """
    with extra("publish"):
        from weightpager.delivery.publishing import repository

    from weightpager.errors import ConfigError

    wrong = [role for role in also or () if role not in ("targets", "root")]
    if wrong:
        raise ConfigError(f"also: expected targets or root, found {wrong[0]!r}")
    expires = repository.refresh(directory, keys or repository.default_keys(directory), also or [], days)
    if json:
        output.print_json(expires)
        return
    output.facts(f"{directory} is valid until", list(expires.items()))


@app.command("prune")
def prune_(
    directory: Repository,
    keep: Annotated[
        int, explicit_option(min=0, help="Versions of each bundle that stay beside those that channels show.")
    ] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    keys: Keys = None,
    json: Json = False,
) -> None:
    """Remove versions that no channel shows, except the newest ones, and files that no other version needs.

    Devices keep the versions that they have.

    Example: `weightpager publish prune repository/ --keep 3 --dry-run`
    """
    with extra("publish"):
        from weightpager.delivery.publishing.prune import prune
        from weightpager.delivery.publishing.repository import default_keys

    done = prune(directory, keys or default_keys(directory), keep, dry_run=dry_run)
    if json:
        output.print_json(done)
        return
    for version in done.versions:
        output.say(f"{version} {'would go' if dry_run else 'is gone'}")
    count = f"{len(done.versions)} version{'' if len(done.versions) == 1 else 's'}"
    what = f"{count}, {done.files} files, {output.size(done.bytes)}"
    output.say(f"{directory}: {what} {'would be' if dry_run else 'were'} removed")


@app.command("rotate")
def rotate(
    directory: Repository,
    role: Annotated[
        Literal["root", "targets", "snapshot", "timestamp"],
        explicit_option(help="Role whose keys are lost, stolen or old.", show_default=False),
    ],
    keys: Keys = None,
    json: Json = False,
) -> None:
    """Replace all keys of a role. Devices learn of it by themselves; what old keys sign is refused from then on.

    Needs the root keys in the folder of keys, as many as must sign.

    Example: `weightpager publish rotate repository/ --role targets`
    """
    with extra("publish"):
        from weightpager.delivery.publishing import repository

    made = repository.rotate(directory, keys or repository.default_keys(directory), role)
    if json:
        output.print_json({"role": role, "keys": made})
        return
    output.say(f"{role}: new keys {', '.join(map(str, made))}; the old ones count no more, and lie in retired/")


@app.command("upload")
def upload_(
    directory: Repository,
    url: Annotated[str, typer.Argument(metavar="URL", help="Such as s3://bucket/repository.", show_default=False)],
    delete: Annotated[
        bool, explicit_option("--delete", help="Then remove from the store what the repository has no more.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Copy a repository to a store, such as S3, Google's, Azure's or SFTP: only the files that it lacks.

    Devices get the old state or the new one. After an interruption the same command goes on. The store
    may be any that fsspec knows. Most need a library: s3fs, gcsfs, adlfs or paramiko.

    Example: `weightpager publish upload repository/ s3://bucket/repository`
    """
    with extra("publish"):
        from weightpager.delivery.publishing.upload import upload

    with progress(quiet or json) as stages:
        done = upload(directory, url, delete=delete, progress=stages)
    if json:
        output.print_json(done)
        return
    removed = f", {done.removed} removed" if delete else ""
    output.say(f"{url}: {done.files} files copied ({output.size(done.bytes)}), {done.there} were there{removed}")
