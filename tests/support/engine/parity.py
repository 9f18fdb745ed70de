"""Both backends on the held-out data that a bundle names."""

from __future__ import annotations

import numpy as np

import weightpager as wp
from weightpager.answers.kinds import IGNORED
from weightpager.bundle import Bundle
from weightpager.bundle.held_out_places import held_out_file
from weightpager.task_data.held_out import read_held_out


def other_classes(bundle: Bundle) -> dict[str, list[float]]:
    """Of each task, where the backends find other classes: by how much torch's first class leads the one that native
    code finds, in parts of the largest logit."""
    with (
        wp.Engine.from_pretrained(bundle.path, backend="native") as native,
        wp.Engine.from_pretrained(bundle.path, backend="torch") as torch,
    ):
        return {task: _differing(native, torch, task) for task in bundle.tasks}


def _differing(native: wp.Engine, torch: wp.Engine, task: str) -> list[float]:
    entry = native.bundle.task(task)
    assert entry.eval is not None
    native.activate(task), torch.activate(task)
    found = []
    file = held_out_file(native.bundle, entry.eval)
    assert file is not None
    for inputs, labels in read_held_out(entry, file, native.reader(), native.limits.vocab_size, 32):
        counted = labels != IGNORED
        ours, theirs = (engine.model(task).logits(inputs)[counted] for engine in (native, torch))
        assert ours.shape == theirs.shape
        rows = np.arange(len(theirs))
        lead = theirs.max(-1) - theirs[rows, ours.argmax(-1)]
        found += [float(each) / float(np.abs(theirs).max()) for each in lead if each]
    return found
