"""Which bundle a contest is about, if nobody names one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from weightpager.bundle import Bundle
from weightpager.errors import BundleError, ConfigError
from weightpager.lab.companions.companion import COMPANIONS, Name, path_in
from weightpager.machine.packages import check_installed


@dataclass(frozen=True)
class Subject:
    """A bundle, those of its companions that there are, and whether its weights are random."""

    bundle: Bundle
    companions: Mapping[Name, Bundle] = field(default_factory=dict)
    random_weights: bool = False


def usual_subject(cache: Path, report: Callable[[str], None], *, quick: bool) -> Subject:
    """The demo's bundle if the cache has it, else random weights in the shape of a model of half a billion parameters.

    Raises:
        ConfigError, CompileError: the random one can't be written; torch writes it.
    """
    for path in sorted((cache / "demo").glob("*/aligned.bundle"), key=lambda path: -path.stat().st_mtime):
        try:
            return Subject(Bundle.open(path), _companions_beside(path))
        except BundleError as error:
            report(f"{path} is passed over: {error}")
    check_installed("torch", "bench", "to write random weights, or name a BUNDLE")
    from weightpager.lab.synthetic_bundle import bundle_of, companions_of, quarter_kept

    folder = cache / "benchmarks" / "contest"
    try:
        companions = {} if quick else companions_of(quarter_kept(), folder, report)
        return Subject(bundle_of(quarter_kept(), folder, report), companions, random_weights=True)
    except OSError as error:
        raise ConfigError(
            f"bench: cannot write random weights into {folder}: {error.strerror or error}; name a BUNDLE, or another "
            "cache by WEIGHTPAGER_CACHE"
        ) from error


def _companions_beside(bundle: Path) -> dict[Name, Bundle]:
    paths = {name: path_in(bundle.parent, name) for name in COMPANIONS}
    return {name: Bundle.open(path) for name, path in paths.items() if path.is_dir()}
