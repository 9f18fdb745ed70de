"""Steps that signal handlers must not cut short."""

from __future__ import annotations

from collections.abc import Callable


def uninterrupted(step: Callable[[], None]) -> None:
    """Carry out a step to its end, however often a signal handler raises meanwhile, Ctrl-C or a time limit's.

    Args:
        step: that fails for no reason of its own, and goes on where it was when it is called again.

    Raises:
        BaseException: what a handler raised first, once the step is done.
    """
    raised: BaseException | None = None
    while True:
        try:
            step()
            break
        except BaseException as error:  # noqa: BLE001 - raised below
            raised = raised or error
    if raised is not None:
        raise raised
