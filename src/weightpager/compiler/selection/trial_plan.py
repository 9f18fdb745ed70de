"""What a compile tries where recovery trains, stated before it knows what fits: names, and how much each is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from weightpager.compiler.task_file.file import STRENGTHS, TaskFile
from weightpager.compiler.task_file.sections import Effort

BLOCKS, PRIVATE, LOW_RANK, SHARED = "blocks", "private blocks", "low-rank parts", "one shared mask"

LARGER = "a larger budget"
"""What blocks alone in more memory are called."""

OWN_SHARE, RANK = 0.1, 8
"""Private blocks and low-rank parts that are tried: those that accuracy was measured with."""


@dataclass(frozen=True)
class Extent:
    """How much is tried.

    Attributes:
        part: a short training makes this share of the steps.
        whole: how many candidates are trained for all steps.
    """

    part: float
    whole: int


EXTENTS: Mapping[Effort, Extent | None] = {"quick": None, "normal": Extent(1 / 8, 2), "thorough": Extent(1 / 3, 3)}
"""None tries nothing: the largest density that fits is taken."""

CHOICES = ("first choice", "second choice", "third choice")
"""What progress calls the candidates that are trained for all steps."""

SPARSITIES = (0.75, 0.5, 0.25, 0.0)
"""What is tried where neither a budget nor a sparsity is stated."""

LOSS = 0.01
"""What tasks may lose there in the mean: a point, or a hundredth of the logarithm of a perplexity."""


def candidate_names(task_file: TaskFile) -> list[str]:
    """What is tried for a budget, if it fits; nothing where the rule decides, as in a task file without a budget."""
    spec, stated = task_file.recover, task_file.recover.model_fields_set
    if task_file.fits is None or spec.method != "finetune" or EXTENTS[task_file.effort] is None:
        return []
    names = [BLOCKS]
    if not {"private_blocks", "low_rank"} & stated and task_file.units.unit == "block":
        names += [PRIVATE] * (len(task_file.tasks) > 1) + [LOW_RANK] * (not task_file.added)
    if len(task_file.tasks) > 1 and not {*STRENGTHS} & task_file.model_fields_set:
        names.append(SHARED)
    return names if len(names) > 1 else []


def tries_sparsities(task_file: TaskFile) -> bool:
    """Whether the sparsity is found by training: nothing in the file decides it, and there is validation data."""
    validated = all(task.validation is not None for task in task_file.tasks.values())
    return not task_file.sized and task_file.recover.method == "finetune" and validated and task_file.effort != "quick"
