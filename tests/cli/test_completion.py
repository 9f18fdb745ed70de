"""What shells ask for is answered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from command import Command

Ask = Callable[[str, str], str]


@pytest.fixture
def ask(weightpager: Command, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """What the command answers to a shell that completes a line."""

    def asked(shell: str, line: str) -> str:
        question = {
            "_WEIGHTPAGER_COMPLETE": f"complete_{shell}",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split(" ")) - 1),
            "_TYPER_COMPLETE_ARGS": line,
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        }
        for name, value in question.items():
            monkeypatch.setenv(name, value)
        return weightpager().out

    return asked


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_commands_and_tasks_are_completed(shell: str, ask: Ask, assistant_bundle: Path) -> None:
    assert "inspect" in ask(shell, "weightpager insp")
    found = ask(shell, f"weightpager run {assistant_bundle} --task we")
    assert "weather" in found
    assert "animal" not in found


@pytest.mark.parametrize(
    "line",
    [
        "plan BUNDLE --from ",
        "plan BUNDLE --from animal --to ",
        "remove BUNDLE ",
        "repack BUNDLE --out x --without ",
        "serve BUNDLE --real-time ",
        "eval BUNDLE --task weather --task ",
        "export --out x BUNDLE --task ",
    ],
)
def test_wherever_a_task_is_named(line: str, ask: Ask, assistant_bundle: Path) -> None:
    found = ask("bash", f"weightpager {line}".replace("BUNDLE", str(assistant_bundle)))
    assert found.split() == ["animal", "weather", "number", "colour"]


def test_nothing_is_offered_where_there_is_no_bundle(ask: Ask) -> None:
    assert ask("bash", "weightpager run nowhere --task we").strip() == ""
    assert ask("bash", "weightpager run ~nobody-of-that-name/x --task we").strip() == ""
    assert ask("bash", "weightpager run --task we").strip() == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_is_a_script_to_source(shell: str, weightpager: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_WEIGHTPAGER_COMPLETE", f"source_{shell}")
    assert f"_WEIGHTPAGER_COMPLETE=complete_{shell}" in weightpager().out
