"""What was asked of switches, memory and compiling, and whether a contest reached it.

The figures were fixed before anything was measured. What isn't there was not measured, which is never reached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from weightpager_lab.contest.result import Contest


@dataclass(frozen=True)
class Goal:
    """A figure that was asked for.

    Attributes:
        key: of the figure.
        asked: in words.
        least: the figure must be at least that.
        most: the figure must be at most that.
        least_key: the figure that it must reach instead of a fixed one.
        sparse: whether it is asked only from 75 % sparsity on, or in few bits.
        contest: how the names of contests begin of which it is asked; all if empty.
        dtype: of the pages of which it is asked; any if empty.
    """

    key: str
    asked: str
    least: float | None = None
    most: float | None = None
    least_key: str = ""
    sparse: bool = False
    contest: str = ""
    dtype: str = ""

    def asked_of(self, name: str) -> bool:
        """Whether it is asked of a contest of this name."""
        return name.startswith(self.contest)


GOALS: Sequence[Goal] = (
    Goal(
        "switch.speedup_whole_mean",
        "mean cold switch at least 10 × faster than loading a whole sparse checkpoint",
        least=10.0,
    ),
    Goal(
        "switch.speedup_strict_mean",
        "at least 0.7 of what the overlap promises against loading a task's paged weights only",
        least_key="switch.speedup_strict_asked",
    ),
    Goal(
        "memory.paged_below_shared_bf16",
        "paged weights at least 60 % below the shared dense backbone's, in bfloat16",
        least=0.6,
        sparse=True,
    ),
    Goal(
        "memory.process_on_torch_below_shared_bf16",
        "the whole process at least 40 % below the one with a shared dense backbone in bfloat16, both in torch",
        least=0.4,
        sparse=True,
    ),
    Goal(
        "memory.paged_below_checkpoints",
        "at least 70 % below one sparse checkpoint for each task",
        least=0.7,
    ),
    Goal(
        "memory.weights_vs_best_rival",
        "weights in memory at most 0.4 × of the best rival that is as accurate",
        most=0.4,
        contest="text assistant",
        dtype="int4",
    ),
    *(
        Goal(
            "switch.speedup_whole_mean",
            f"from int4 pages, mean cold switch at least {least:g} × faster than loading a whole sparse checkpoint",
            least=least,
            contest=contest,
            dtype="int4",
        )
        for contest, least in (("text assistant", 20.0), ("driving", 6.6), ("half a billion", 8.0))
    ),
    Goal(
        "switch.speedup_whole_max",
        "and at best at least 9.8 × faster",
        least=9.8,
        contest="driving",
        dtype="int4",
    ),
    Goal(
        "switch.speedup_language_mean",
        "from int4 pages, mean cold switch at least 4 × faster than loading the language model's blocks alone",
        least=4.0,
        contest="driving",
        dtype="int4",
    ),
)

LEAST_AHEAD = 20.0
"""Times that a trace waits longer for whole sparse checkpoints than with prefetch, f = 0.5."""

TRACES_AHEAD = ("assistant", "drive")

MOST_SHARE = 0.6
"""Mean wait on the driving domain's trace with prefetch, as a share of that without."""

MOST_ALIGN_PACK = 0.1
"""Seconds of alignment and packing, as a share of the calibration's."""

PUBLISHED: Mapping[str, tuple[str, float]] = {
    "switch.speedup_whole_mean": ("task switches 6.6 × faster on average", 6.6),
    "switch.speedup_whole_max": ("up to 9.8 ×", 9.8),
    "memory.process_on_torch_below_shared_bf16": ("memory down by up to 46 %", 0.46),
}
"""By our figure: what the published system reports, of another model on another machine."""


NOT_ASKED = ("not asked", "–")


def verdict(goal: Goal, contest: Contest) -> tuple[str, str]:
    """``yes``, ``no``, ``not measured``, ``not proved cold`` or ``not asked``, and what was found."""
    if goal.sparse and contest.facts.sparsity < 0.745 and contest.facts.dtype not in ("int8", "int4"):
        return NOT_ASKED
    if goal.dtype and contest.facts.dtype != goal.dtype:
        return NOT_ASKED
    found = contest.figures.get(goal.key)
    least = contest.figures.get(goal.least_key) if goal.least_key else goal.least
    if found is None or (goal.least_key and least is None):
        return "not measured", "–"
    if goal.key.startswith("switch.") and not contest.cold:
        return "not proved cold", "–"
    reached = found <= goal.most if goal.most is not None else found >= (least or 0.0)
    text = f"{found:.3g}" if not goal.least_key else f"{found:.3g}, goal {least:.3g}"
    return ("yes" if reached else "no"), text
