"""Which bundle a contest is about, if nobody names one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from weightpager.bundle import Bundle
from weightpager.errors import BundleError, ConfigError
from weightpager.lab.synthetic_bundle import bundle_of, quarter_kept


@dataclass(frozen=True)
class Subject:
    """A bundle, the same without alignment if there is one, and whether its weights are random."""

    bundle: Bundle
    unaligned: Bundle | None
    random_weights: bool


def usual_subject(cache: Path, report: Callable[[str], None], *, quick: bool) -> Subject:
    """The demo's bundle if the cache has it, else random weights in the shape of a model of half a billion parameters.

    Raises:
        ConfigError, CompileError: the random one can't be written.
    """
    for path in sorted((cache / "demo").glob("*/aligned.bundle"), key=lambda path: -path.stat().st_mtime):
        try:
            return Subject(Bundle.open(path), None, random_weights=False)
        except BundleError as error:
            report(f"{path} is passed over: {error}")
    folder = cache / "benchmarks" / "contest"
    try:
        unaligned = None if quick else bundle_of(quarter_kept(aligned=False), folder, report)
        return Subject(bundle_of(quarter_kept(), folder, report), unaligned, random_weights=True)
    except OSError as error:
        raise ConfigError(
            f"bench: cannot write random weights into {folder}: {error.strerror or error}; name a BUNDLE, or another "
            "cache by WEIGHTPAGER_CACHE"
        ) from error
