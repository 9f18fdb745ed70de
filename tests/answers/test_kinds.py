"""Every kind of tasks that a manifest may name is stated everywhere."""

from __future__ import annotations

from typing import get_args

import pytest

from weightpager.answers.kinds import Kind, kind_of
from weightpager.answers.work import Generated
from weightpager.backends.torch.architecture import CLASSES
from weightpager.bundle import TaskEntry, TaskKind
from weightpager.bundle.format.manifest import FORMS, Generation


@pytest.mark.parametrize("name", get_args(TaskKind))
def test_a_kind_is_stated_everywhere(name: TaskKind) -> None:
    assert isinstance(kind_of(name), Kind)
    assert hasattr(CLASSES[name], "from_config")


@pytest.mark.parametrize("name", [name for name in get_args(TaskKind) if FORMS[name].writes])
def test_what_a_task_writes_is_its_completion_and_stays_whole(name: TaskKind) -> None:
    generation = Generation(prompts="plain", max_new_tokens=4, metrics=["chrf"]) if FORMS[name].completes else None
    task = TaskEntry(
        name="a", kind=name, classes=[], max_length=8, sparsity=0, dense=None, eval=None, generation=generation
    )
    text = "    return red\n"
    found = kind_of(name).prediction(task, "def f():\n", Generated(text, 4, "stop"))
    assert (found.label, found.completion) == (text, text)


def test_no_other_kind_is() -> None:
    assert list(FORMS) == list(get_args(TaskKind))
