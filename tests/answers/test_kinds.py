"""Every kind of tasks that a manifest may name is stated everywhere."""

from __future__ import annotations

from typing import get_args

import pytest

from weightpager.answers.kinds import kind_of
from weightpager.answers.kinds.kind import Kind
from weightpager.backends.torch.model.architecture import CLASSES
from weightpager.bundle import TaskKind
from weightpager.bundle.format.manifest import FORMS


@pytest.mark.parametrize("name", get_args(TaskKind))
def test_a_kind_is_stated_everywhere(name: TaskKind) -> None:
    assert isinstance(kind_of(name), Kind)
    assert hasattr(CLASSES[name], "from_config")


def test_no_other_kind_is() -> None:
    assert list(FORMS) == list(get_args(TaskKind))
