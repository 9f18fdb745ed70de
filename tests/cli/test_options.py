"""Options that commands share."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest

from command import Command
from weightpager.cli.options import PACKAGES

ROOT = Path(__file__).parent.parent.parent


SIMULATE = ("simulate", "assistant.bundle", "--trace", "mail")
WATCH = ("pull", "repository", "assistant", "--into", "bundles", "--watch")
INTERVAL = ("top", "--interval")


@pytest.mark.parametrize("number", ["nan", "inf"])
@pytest.mark.parametrize(
    "words",
    [
        WATCH,
        INTERVAL,
        (*SIMULATE, "--max-wait"),
        (*SIMULATE, "--dwell"),
        (*SIMULATE, "--replicas", "2", "--compute"),
    ],
    ids=lambda words: words[-1],
)
def test_a_number_that_isnt_finite_is_refused(weightpager: Command, words: tuple[str, ...], number: str) -> None:
    done = weightpager(*words, number)
    assert done.code == 2
    refused_by_typer = "greater than or equal to" in done.err  # which versions of it do with nan
    assert refused_by_typer or f"{words[-1]}: expected a finite number, found {number}" in done.err


@pytest.mark.parametrize("words", [WATCH, INTERVAL], ids=lambda words: words[-1])
def test_a_time_that_no_clock_takes_is_refused(weightpager: Command, words: tuple[str, ...]) -> None:
    done = weightpager(*words, "1e10")
    assert done.code == 2
    assert f"{words[-1]}: expected at most 1e+09 seconds, found 1e+10" in done.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--dwell", "1e308"), "expected a mean dwell time over 0 and up to 1e+09 seconds, got 1e+308"),
        (("--replicas", "2", "--compute", "1e308"), "--compute: expected at most 1e+09 milliseconds, found 1e+308"),
    ],
)
def test_times_whose_sums_are_not_finite_are_refused(
    weightpager: Command, assistant_bundle: Path, words: tuple[str, ...], expected: str
) -> None:
    done = weightpager("simulate", assistant_bundle, "--trace", "random", *words)
    assert done.code == 2
    assert expected in done.err


def named(extras: dict[str, list[str]], extra: str) -> set[str]:
    """Distributions of an extra and of those that it includes."""
    found = set()
    for requirement in extras[extra]:
        name, inner = re.match(r"([\w.-]+)(?:\[([\w,]+)\])?", requirement).groups()  # type: ignore[union-attr]
        if name == "weightpager":
            found |= set().union(*(named(extras, each) for each in inner.split(",")))
        else:
            found.add(_name(name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("extra", PACKAGES)
def test_what_is_looked_for_is_what_the_extra_installs(extra: str) -> None:
    toml = pytest.importorskip("tomllib")
    extras = toml.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    wanted, known = named(extras, extra), packages_distributions()
    wanted |= {_name(each) for distribution in wanted for each in _required(distribution)}
    for package in PACKAGES[extra]:
        if package in known:
            assert set(map(_name, known[package])) & wanted, package


def _required(distribution: str) -> list[str]:
    try:
        return requires(distribution) or []
    except PackageNotFoundError:
        return []


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")
