"""What messages call the long stages of a compile."""

from __future__ import annotations

_WORDS = {
    "train": "the dense model's training",
    "refit": "the refit",
    "finetune": "fine-tuning",
    "dense": "the dense model's further training",
}
"""Stage → its name in messages."""

_OF_TASKS = {
    "own-dense-": "the dense model's training for {}",
    "own-sparse-": "the training of {}'s own parameters",
    "private-": "{}'s own values",
}
"""The same of stages that each task has for itself, by how their names begin."""


def in_words(stage: str) -> str:
    """What messages call a stage; one that isn't long goes by its name."""
    for prefix, words in _OF_TASKS.items():
        if stage.startswith(prefix):
            return words.format(stage.removeprefix(prefix))
    return _WORDS.get(stage, stage)
