"""What a preparation fixes for all stages that follow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tiny
import tiny_llava
from tiny_models import jsonl
from weightpager.answers.score import Score
from weightpager.bundle.files.entry import hash_file
from weightpager.compiler.fit import _energies
from weightpager.compiler.model.dense_model import load
from weightpager.compiler.model.task_weights import TaskWeights
from weightpager.compiler.packing.plan import plan_bundle
from weightpager.compiler.prepare import _load_data
from weightpager.compiler.selection.alignment_target import choose_alignment
from weightpager.compiler.selection.block_choice import choose_blocks
from weightpager.compiler.selection.prepared import Prepared
from weightpager.compiler.task_file.file import from_dict
from weightpager.progress import silent
from weightpager.transitions import Transitions


def prepared(folder: Path, old: Transitions | None = None, **settings: object) -> Prepared:
    """Tasks whose saliency is drawn: nothing is trained or measured."""
    source = load(from_dict(tiny.assistant(folder) | settings), old=old)
    dense = dict.fromkeys(source.models, Score("accuracy", 0.0, 1))
    return Prepared(source, _load_data(source), dense, _energies(source))


def visits(trace: Path, tasks: list[str]) -> Path:
    return jsonl(trace, [{"task": task, "time": number} for number, task in enumerate(tasks)])


@pytest.mark.parametrize("then", ["grows", "goes away"])
def test_a_trace_is_read_once(tmp_path: Path, then: str) -> None:
    trace, names = tmp_path / "history", [*tiny.assistant(tmp_path)["tasks"]]
    visits(trace, names[:2] * 20)
    found = prepared(tmp_path, transitions=str(trace), alignment=0.5)
    before = choose_blocks(found).masks
    if then == "grows":
        visits(trace, names[:2] * 20 + names[2:] * 200)
    else:
        trace.unlink()
    after = choose_blocks(found).masks
    assert all(np.array_equal(keep, after.keep[name]) for name, keep in before.keep.items())
    bounded, _ = choose_alignment(found.changed(max_switch=1 << 30), silent)
    plan = plan_bundle(bounded, TaskWeights(found.source), after.keep)
    assert plan.transitions is found.source.transitions
    assert plan.transitions.matrix[0, 1] > 0.8


def test_tasks_of_a_base_come_first_and_choose_nothing(tmp_path: Path) -> None:
    alone, added = prepared(tmp_path), prepared(tmp_path, Transitions.uniform(["old", "older"]))
    assert added.source.transitions.tasks == ("old", "older", *alone.source.transitions.tasks)
    wanted, found = choose_blocks(alone).masks, choose_blocks(added).masks
    assert found.tasks == wanted.tasks
    assert all(np.array_equal(keep, found.keep[name]) for name, keep in wanted.keep.items())


def test_held_out_rows_of_a_model_of_texts_are_known_by_their_file(tmp_path: Path) -> None:
    model = tiny.llama(tmp_path / "llama")
    tiny_llava.tokenizer().save_pretrained(model)
    content = tiny_llava.watcher(tmp_path, model=str(model))
    content["tasks"] = {"animal": content["tasks"]["animal"]}
    source = load(from_dict(content))
    found = Prepared(source, _load_data(source), {"animal": Score("accuracy", 0.0, 1)}, _energies(source))
    (entry,) = found.entries()
    assert entry.eval is not None
    assert entry.eval.blake3 == hash_file(tmp_path / "animal.eval.jsonl").blake3


def test_only_settings_of_a_task_file_can_change(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="expected settings of a task file, found aligment"):
        prepared(tmp_path).changed(aligment=0.0)
