"""What a verb says of the environment variables that stand in for its options."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from command import Command
from docs.cli_page import page, verbs
from weightpager.cli.app import application
from weightpager.cli.command import misspelt
from weightpager.errors import ConfigError

PAGE = page()
COMMANDS = [name for name, _, _ in verbs(application())]


def test_what_typer_refuses_names_the_variable_that_said_it(
    weightpager: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIGHTPAGER_SERVE_PORT", "many")
    refused = weightpager("serve", "assistant.bundle")
    assert refused.code == 2
    assert "WEIGHTPAGER_SERVE_PORT" in refused.err
    assert "WEIGHTPAGER_SERVE_PORT" not in weightpager("serve", "assistant.bundle", "--port", "more").err


@pytest.mark.parametrize("value", ["4 parsecs", "1KiB"])
def test_what_we_refuse_names_the_variable_that_said_it(
    weightpager: Command, assistant_bundle: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("WEIGHTPAGER_RUN_BUDGET", value)
    refused = weightpager("run", assistant_bundle, "--task", "weather", "text")
    assert refused.code
    assert "WEIGHTPAGER_RUN_BUDGET has set --budget" in refused.err
    stated = weightpager("run", assistant_bundle, "--task", "weather", "--budget", value, "text")
    assert "WEIGHTPAGER_RUN_BUDGET" not in stated.err


def test_an_option_that_a_callback_refuses_names_its_variable(
    weightpager: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIGHTPAGER_TOP_INTERVAL", "1e10")
    assert "WEIGHTPAGER_TOP_INTERVAL has set --interval" in weightpager("top", "--once").err


def nothing_is_examined(*_: object) -> None:
    """In the place of what takes a second, after the variables have been looked at."""
    raise ConfigError("nothing is examined")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("WEIGHTPAGER_DOCTOR_PAHT", "did you mean WEIGHTPAGER_DOCTOR_PATH?"),
        ("WEIGHTPAGER_DOTCOR_PATH", "did you mean WEIGHTPAGER_DOCTOR_PATH?"),
        ("WEIGHTPAGER_THREAD", "did you mean WEIGHTPAGER_THREADS?"),
        ("WEIGHTPAGER_CACHE_LIMTI", "did you mean WEIGHTPAGER_CACHE_LIMIT?"),
        ("WEIGHTPAGER_DOCTOR_ZEBRA", "--help names the variables of this command"),
    ],
)
def test_a_misspelt_variable_is_warned_about(
    weightpager: Command, monkeypatch: pytest.MonkeyPatch, written: str, meant: str
) -> None:
    monkeypatch.setenv(written, "1")
    monkeypatch.setattr("weightpager.doctor.examine.examine", nothing_is_examined)
    said = weightpager("doctor").err
    assert f"warning: nothing reads {written}" in said
    assert meant in said


@pytest.mark.parametrize("variable", ["WEIGHTPAGER_VERSION", "WEIGHTPAGER_RUN_BUDGET", "MY_WEIGHTPAGER_THREAD"])
def test_what_others_may_have_meant_is_not_warned_about(
    weightpager: Command, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    monkeypatch.setattr("weightpager.doctor.examine.examine", nothing_is_examined)
    said = weightpager("doctor").err
    assert "error: nothing is examined" in said
    assert "warning: nothing reads" not in said


@pytest.mark.parametrize("name", list(COMMANDS))
def test_what_other_verbs_read_is_not_warned_about(name: str) -> None:
    variables = {one: set(twins(one)) for one in COMMANDS}
    with pytest.MonkeyPatch.context() as patch:
        for variable in set().union(*variables.values()):
            patch.setenv(variable, "1")
        own = f"WEIGHTPAGER_{name.upper().replace(' ', '_')}_"
        assert list(misspelt(sorted(variables[name]), own)) == []


def twins(name: str) -> set[str]:
    """The variables that the page of commands names for a verb."""
    section = re.split(r"\n###? ", PAGE.partition(f"\n### {name}\n")[2])[0]
    return set(re.findall(r"`(WEIGHTPAGER_\w+)`", section))
