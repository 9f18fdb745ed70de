"""``verify``: it reads a bundle without torch, and needs no engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from weightpager.backends.verify import verify as verify_bundle
from weightpager.bundle.repair.mend import Repair
from weightpager.bundle.repair.mend import repair as repair_bundle
from weightpager.cli import output
from weightpager.cli.options import BundlePath, Json, Quiet, explicit_option
from weightpager.cli.progress import progress
from weightpager.errors import ConfigError

_MOST_NAMED = 20


def verify(
    bundle: BundlePath,
    repair: Annotated[bool, explicit_option("--repair", help="Mend what is damaged, from another copy.")] = False,
    from_bundle: Annotated[
        Path | None,
        typer.Option("--from", metavar="OTHER", help="Bundle to mend from: a copy, or one that shares pages."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check every hash, index and bound of a bundle, and that its tasks can run; with `--repair`, mend it first.

    Mending writes only to what is damaged. It compares everything from the other bundle with its hash before it writes.
    It may be stopped at any moment and started again.

    Example: `weightpager verify assistant.bundle --repair --from backup/assistant.bundle`
    """
    if from_bundle is None:
        if repair:
            raise ConfigError("verify: expected another copy to mend from, found none; name it with --from OTHER")
        _verify(bundle, json=json, quiet=quiet)
    elif repair:
        _repair(bundle, from_bundle, json=json, quiet=quiet)
    else:
        raise ConfigError("verify: expected --repair with --from, found --from alone; add --repair to mend the bundle")


def _verify(bundle: Path, *, json: bool, quiet: bool) -> None:
    with progress(quiet or json) as stages:
        result = verify_bundle(bundle, partial(stages, "pages"))
    if json:
        output.print_json(result)
    else:
        verdict = _counted(result.problems) if result.problems else "all well"
        _print_problems(result.problems, result.advice)
        output.say(f"{bundle}: {result.files} files, {result.pages} pages: {verdict}")
    if result.problems:
        raise typer.Exit(1)


def _repair(bundle: Path, source: Path, *, json: bool, quiet: bool) -> None:
    with progress(quiet or json) as stages:
        done = repair_bundle(bundle, source, partial(stages, "mending"))
        advice: Sequence[str] = ["try another copy with --from, or copy the whole bundle again"]
        if not done.problems:
            left = verify_bundle(bundle, partial(stages, "pages"))
            done, advice = replace(done, problems=left.problems), left.advice
    if json:
        output.print_json(done)
    else:
        _print_repair(bundle, done, advice)
    if done.problems:
        raise typer.Exit(1)


def _print_repair(bundle: Path, done: Repair, advice: Sequence[str]) -> None:
    for name in done.mended_files:
        output.say(f"{name}: mended")
    for name in done.mended_frames:
        output.say(f"{name}: size and header mended")
    if done.mended_pages:
        numbers = ", ".join(map(str, done.mended_pages[:_MOST_NAMED]))
        output.say(f"pages mended: {numbers}{', …' if len(done.mended_pages) > _MOST_NAMED else ''}")
    _print_problems(done.problems, advice)
    mended = f"{len(done.mended_files)} of {done.files} files and {len(done.mended_pages)} of {done.pages} pages"
    verdict = f"{_counted(done.problems)} left" if done.problems else "all well"
    output.say(f"{bundle}: {mended} mended: {verdict}")


def _counted(problems: Sequence[str]) -> str:
    return "1 problem" if len(problems) == 1 else f"{len(problems)} problems"


def _print_problems(problems: Sequence[str], advice: Sequence[str]) -> None:
    for problem in problems:
        output.errors().print(problem, style="red")
    for line in advice if problems else ():
        output.hint(line)
