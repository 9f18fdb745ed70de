"""What is in the way where a contest didn't reach what was asked, from the same measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean

from benchmarks.report.goals import GOALS, verdict
from benchmarks.report.tables import ms, title
from weightpager.config import format_size
from weightpager_lab.contest.figures import NEVER_LOAD, RIVALS, alike
from weightpager_lab.contest.result import Contest


def reasons(contests: Mapping[str, Contest]) -> list[str]:
    """A line for each contest and each reason."""
    lines = []
    for name, contest in contests.items():
        missed = [goal.key for goal in GOALS if goal.asked_of(name) and verdict(goal, contest)[0] == "no"]
        found = dict.fromkeys(REASONS[key](contest) for key in missed if key in REASONS)
        lines += [f"{title(name)}: {reason}" for reason in found if reason]
    return lines


def _of_switch(contest: Contest) -> str:
    """How much more a whole checkpoint has to load, and what of a switch isn't loading."""
    ours, whole, storage = contest.row("ours"), contest.row(RIVALS["whole"]), contest.limits.storage
    if ours is None or whole is None or storage is None or not any(ours.values("bytes")) or not whole.values("bytes"):
        return ""
    read, theirs, ready = (
        fmean(values) for values in (ours.values("bytes"), whole.values("bytes"), ours.values("ready"))
    )
    disk = read / storage
    return (
        f"a whole checkpoint is {theirs / read:.1f} × as many bytes as a switch reads, {format_size(int(theirs))} and "
        f"{format_size(int(read))}; of a switch's {ms(ready)} those take {ms(disk)}, and {ms(max(0.0, ready - disk))} "
        "are what any switch costs."
    )


def _of_process(contest: Contest) -> str:
    """How much of a process isn't weights."""
    theirs = contest.row(NEVER_LOAD["bf16"])
    ours = None if theirs is None else alike(contest, theirs)
    if ours is None or ours.found is None or ours.peak_memory is None or not ours.found.memory.weights:
        return ""
    return (
        f"of the process's {format_size(ours.peak_memory)} on torch weights are "
        f"{format_size(ours.found.memory.weights)}; the rest is the interpreter, torch and transformers, which all "
        "methods on torch need."
    )


REASONS: Mapping[str, Callable[[Contest], str]] = {
    "switch.speedup_whole_mean": _of_switch,
    "switch.speedup_whole_max": _of_switch,
    "switch.speedup_strict_mean": _of_switch,
    "switch.speedup_language_mean": _of_switch,
    "memory.process_on_torch_below_shared_bf16": _of_process,
}
"""By the figure that was missed."""
