"""Where parameters go that aren't paged: what the most tasks share is resident, all else is a task's own."""

from __future__ import annotations

import torch
from torch import Tensor

from weightpager.compiler.packing.write import share_parameters


def named(**values: float) -> dict[str, Tensor]:
    return {name: torch.tensor([value]) for name, value in values.items()}


def test_the_values_of_the_most_tasks_are_resident() -> None:
    found = share_parameters({"a": named(norm=1), "b": named(norm=2), "c": named(norm=2)}, ())
    assert found.resident == named(norm=2)
    assert found.private == {"a": named(norm=1), "b": {}, "c": {}}


def test_what_no_two_tasks_share_is_private() -> None:
    found = share_parameters({"a": named(head=1), "b": named(head=2, pooler=3)}, ())
    assert found.resident == {}
    assert found.private == {"a": named(head=1), "b": named(head=2, pooler=3)}


def test_a_single_task_has_nothing_for_itself() -> None:
    found = share_parameters({"a": named(head=1, norm=2)}, ())
    assert (found.resident, found.private) == (named(head=1, norm=2), {"a": {}})


def test_tables_come_on_demand_where_all_tasks_agree_on_them() -> None:
    tasks = {"a": named(words=1, places=1), "b": named(words=1, places=1), "c": named(words=1, places=2)}
    found = share_parameters(tasks, ("words", "places", "others"))
    assert found.tables == named(words=1)
    assert found.resident == named(places=1)
    assert found.private["c"] == named(places=2)


def test_values_of_another_dtype_are_others() -> None:
    found = share_parameters({"a": {"norm": torch.ones(1)}, "b": {"norm": torch.ones(1).bfloat16()}}, ())
    assert found.resident == {}
