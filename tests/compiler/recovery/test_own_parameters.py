"""Which parameters a task trains beside its blocks."""

from __future__ import annotations

from pathlib import Path

import tiny
from sparse import copied
from weightpager.compiler.model import dense_model as sources
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.recovery.own_parameters import own_parameters, untie_own_vectors
from weightpager.compiler.task_file.file import from_dict

POOLER, HEAD, VECTOR = "base_model.pooler.dense.weight", "classifier.weight", "base_model.embeddings.LayerNorm.bias"


def load(folder: Path, **changes: object) -> DenseModel:
    content = tiny.assistant(folder)
    content["tasks"]["animal"] |= changes
    return sources.load(from_dict(content))


def test_matrices_that_tasks_share_are_none_of_their_own(tmp_path: Path) -> None:
    source = load(tmp_path)
    untie_own_vectors(source, "animal", pooler=False)
    own = own_parameters(source, "animal")
    assert {HEAD, VECTOR} <= own.keys()
    assert POOLER not in own
    assert all(tensor.ndim == 1 or name.startswith("classifier") for name, tensor in own.items())
    assert own[VECTOR] is not source.parameters("weather")[VECTOR]


def test_a_pooler_that_was_separated_is_a_tasks_own(tmp_path: Path) -> None:
    source = load(tmp_path)
    for task in source.models:
        untie_own_vectors(source, task, pooler=True)
    assert POOLER in own_parameters(source, "animal")
    assert own_parameters(source.alone("animal"), "animal").keys() == own_parameters(source, "animal").keys()
    assert POOLER in own_parameters(copied(source), "animal")
    assert POOLER not in own_parameters(source, "colour")  # tagging has none


def test_a_pooler_stays_as_the_head_that_a_task_brings_knows_it(tmp_path: Path) -> None:
    model = sources.load(from_dict(tiny.assistant(tmp_path))).models["animal"]
    model.config.id2label, model.config.label2id = {0: "cat", 1: "dog"}, {"cat": 0, "dog": 1}
    model.save_pretrained(tmp_path / "head")
    source = load(tmp_path, head=str(tmp_path / "head"))
    untie_own_vectors(source, "animal", pooler=True)
    own = own_parameters(source, "animal")
    assert HEAD in own
    assert POOLER not in own
