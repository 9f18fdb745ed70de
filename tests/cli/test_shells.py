"""Completion in the shells themselves."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

Complete = Callable[[str], list[str]]
"""What a shell makes of a line when Tab is pressed: candidates for its last word."""

COMMAND = """#!/bin/sh
exec '{python}' -m weightpager "$@"
"""

BASH = """
eval "$(_WEIGHTPAGER_COMPLETE=source_bash weightpager)"
complete -p weightpager >&2
read -ra COMP_WORDS <<< "$1"
[[ $1 == *' ' ]] && COMP_WORDS+=('')
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_weightpager_completion weightpager
printf '%s\\n' "${COMPREPLY[@]}"
"""

FISH = """
_WEIGHTPAGER_COMPLETE=source_fish weightpager | source
complete -C $argv[1] | cut -f 1
"""

# zsh completes in its line editor only, so a second one is given a terminal, and says what has become of the line.
ZSH_INNER = """
autoload -Uz compinit
compinit -D -u
eval "$(_WEIGHTPAGER_COMPLETE=source_zsh weightpager)"
press() { zle complete-word; print -r -- ${${(z)BUFFER}[-1]} > answer.new; mv answer.new answer }
zle -N press
bindkey '^I' press
touch ready
"""
ZSH = """
zmodload zsh/zpty zsh/zselect
await() { repeat 600; do [[ -e $1 ]] && return; zselect -t 10; zpty -rt inner seen; done; exit 1 }
zpty inner zsh -f -i
zpty -w inner 'source ./inner.zsh'
await ready
zpty -wn inner "$1"$'\\t'
await answer
zpty -d inner
cat answer
"""
SHELLS = {"bash": (BASH, ["--norc"]), "zsh": (ZSH, ["-f"]), "fish": (FISH, ["--no-config"])}


@pytest.fixture(params=SHELLS)
def complete(request: pytest.FixtureRequest, tmp_path: Path) -> Complete:
    shell = shutil.which(request.param)
    if shell is None:
        pytest.skip(f"there is no {request.param} on this machine")
    script, options = SHELLS[request.param]
    (tmp_path / "outer").write_text(script)
    (tmp_path / "inner.zsh").write_text(ZSH_INNER)
    command = tmp_path / "bin" / "weightpager"
    command.parent.mkdir()
    command.write_text(COMMAND.format(python=sys.executable))
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    environment = os.environ | {"PATH": f"{command.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}

    def completed(line: str) -> list[str]:
        for name in ("ready", "answer"):
            (tmp_path / name).unlink(missing_ok=True)
        arguments = [shell, *options, "./outer", line]
        found = subprocess.run(
            arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True, timeout=120
        )
        return found.stdout.split()

    return completed


def test_a_shell_completes_commands_options_and_tasks(
    complete: Complete, assistant_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "my.bundle").symlink_to(assistant_bundle)
    assert complete("weightpager insp") == ["inspect"]
    assert complete("weightpager serve my.bundle --prefe") == ["--prefetch"]
    for bundle in ("my.bundle", "~/my.bundle", assistant_bundle):
        assert complete(f"weightpager run {bundle} --task we") == ["weather"]
