"""A contest's bundle and its companions, as the command that runs the contest names them."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import typer

from benchmarks import results
from weightpager.bundle import Bundle
from weightpager_lab.companions import Name
from weightpager_lab.contest.plan import Subject


@pytest.mark.parametrize("names", [[], ["unaligned"], ["all_blocks"], ["unaligned", "all_blocks", "one_mask"]])
def test_a_command_names_a_bundle_and_its_companions(names: list[Name], assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    made = Subject(bundle, dict.fromkeys(names, bundle))
    typed = shlex.split(results.command("text", "text assistant", made))
    read = results.named_subject(typed[typed.index("--bundle") + 1])
    assert read.bundle.path == assistant_bundle
    assert list(read.companions) == names


def test_a_bundle_has_a_path_and_no_more_companions_than_there_are() -> None:
    for text in ("text assistant", "text=a=b=c=d=e"):
        with pytest.raises(typer.BadParameter, match="expected NAME=PATH"):
            results.named_subject(text)
