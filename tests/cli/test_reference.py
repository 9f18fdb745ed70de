"""The page of commands is up to date, and says of the environment what holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from command import Command
from docs.cli_page import page
from weightpager.cli.app import application

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
ROOT = typer.main.get_command(application())


def commands(group: Any, above: str = "") -> dict[str, Any]:
    """All commands, those in groups by the words that people type."""
    found = {}
    for name, command in group.commands.items():
        inner = hasattr(command, "commands")
        found |= commands(command, f"{above}{name} ") if inner else {f"{above}{name}": command}
    return found


COMMANDS = commands(ROOT)

EXPLICIT = {
    "bench --out",
    "cache --clear",
    "compile --force",
    "demo --out",
    "gc --force",
    "remove --force",
    "publish prune --keep",
    "publish rotate --role",
    "publish upload --delete",
    "pull --keep",
    "repack --force",
    "repack --without",
    "verify --repair",
}
"""Options by which something is removed or overwritten: a variable that was left in a shell mustn't do that."""


def test_the_page_is_up_to_date() -> None:
    assert page() == PAGE, "run: python -m docs.cli_page > docs/cli.md"


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_option_has_the_twin_that_the_page_names(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    section = re.split(r"\n###? ", PAGE.partition(f"\n### {name}\n")[2])[0]
    named = set(re.findall(r"`(WEIGHTPAGER_\w+)`", section))
    command = COMMANDS[name]
    context = ROOT.make_context("weightpager", [], resilient_parsing=True)
    for word in name.split():
        context = context.command.commands[word].make_context(word, [], parent=context, resilient_parsing=True)
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    twins = {f"WEIGHTPAGER_{name}_{option.name}".upper().replace(" ", "_"): option for option in options}
    for twin in twins:
        monkeypatch.setenv(twin, "1")
    assert named == {twin for twin, option in twins.items() if option.resolve_envvar_value(context) == "1"}
    without = {f"{name} {option.opts[0]}" for twin, option in twins.items() if twin not in named}
    assert without == {option for option in EXPLICIT if option.startswith(f"{name} --")}


@pytest.mark.parametrize("name", list(COMMANDS))
def test_help_names_variables_whole_in_a_narrow_terminal(
    weightpager: Command, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    section = re.split(r"\n###? ", PAGE.partition(f"\n### {name}\n")[2])[0]
    said = weightpager(*name.split(), "--help").out
    for variable in re.findall(r"`(WEIGHTPAGER_\w+)`", section):
        assert re.search(rf"\b{variable}\b", said)


def test_options_that_must_be_given_exist() -> None:
    assert {option.rpartition(" ")[0] for option in EXPLICIT} < set(COMMANDS)


def test_a_variable_that_was_left_removes_nothing(
    weightpager: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIGHTPAGER_CACHE", str(tmp_path))
    monkeypatch.setenv("WEIGHTPAGER_CACHE_LIMIT", "1MB")
    monkeypatch.setenv("WEIGHTPAGER_CACHE_CLEAR", "1")
    entry = tmp_path / "compile" / "train-0.safetensors"
    entry.parent.mkdir()
    entry.touch()
    assert weightpager("cache").code == 0
    assert entry.exists()
    assert weightpager("cache", "--clear").code == 0
    assert not entry.exists()


def test_every_command_has_help_with_an_example(weightpager: Command) -> None:
    for name in COMMANDS:
        found = weightpager(*name.split(), "--help")
        assert found.code == 0
        assert "Example" in found.out


def test_a_variable_with_the_version_disturbs_no_command(
    weightpager: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIGHTPAGER_VERSION", "0.1.0")
    assert "no bundles" in weightpager("ls", tmp_path).out
