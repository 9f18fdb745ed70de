"""What is held for a block is let go, whichever step is interrupted, and whoever keeps the error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest

from interrupted import Interrupted, Steps, stepped
from weightpager.kernels.choice import NATIVE
from weightpager.runtime import bracket as module
from weightpager.runtime.bracket import bracket


class Holder:
    def __init__(self) -> None:
        self.holds = self.entered = 0

    @bracket
    def held(self) -> Iterator[str]:
        self.holds += len("1")
        try:
            yield "value"
        finally:
            self.holds -= len("1")

    def work(self) -> None:
        with self.held() as value:
            assert value == "value"
            assert self.holds == 1
            self.entered += len("1")


def test_a_bracket_is_a_context() -> None:
    holder = Holder()
    holder.work()
    assert (holder.holds, holder.entered) == (0, 1)
    with pytest.raises(ValueError, match="the block's own"), holder.held():
        raise ValueError("the block's own")
    assert holder.holds == 0
    assert Holder.held.__name__ == "held"


class Plain(module._Bracket[str]):
    """As without the native module."""

    __exit__ = module._Ending.__exit__


@pytest.mark.parametrize("bracket_class", [module._Bracket, Plain])
@stepped
def test_whatever_step_is_interrupted_nothing_is_held(bracket_class: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_Bracket", bracket_class)
    holder, steps, kept = Holder(), Steps(), []
    while not steps.is_over:
        steps.at += 1
        try:
            steps("hold", holder.work)
        except Interrupted as error:
            kept.append(error)  # and with it the frames that it went through
        if bracket_class is Plain or not NATIVE:  # its end begins with a step of Python's
            kept.clear()
        assert holder.holds == 0, steps.at
    assert steps.times > 20
    assert holder.entered > 1


def test_who_cannot_enter_holds_nothing() -> None:
    @bracket
    def refused() -> Iterator[None]:
        raise ValueError("no room")
        yield

    with pytest.raises(ValueError, match="no room"), refused():
        raise AssertionError("the block was entered")


def test_a_block_may_end_an_error() -> None:
    @bracket
    def quiet() -> Iterator[None]:
        with suppress(ValueError):
            yield

    with quiet():
        raise ValueError("nobody's")
