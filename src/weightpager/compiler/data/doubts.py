"""Warnings about a task's data: what is allowed, but mostly a mistake."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

from weightpager.task_data.completions import Asked, Completion
from weightpager.task_data.held_out import Item
from weightpager.task_data.images import Picture
from weightpager.task_data.texts import Example

FEW = 10
"""Training examples below which a warning is given."""

SHARE = 0.05
"""Share of held-out items that another split may have, too: short messages repeat by nature."""

CUT = 0.05
"""Share of training texts that may be cut without a warning."""


def of_labels(classes: Sequence[str]) -> Iterator[str]:
    """Labels that look alike to a reader."""
    first: dict[str, str] = {}
    for label in classes:
        like = first.setdefault(" ".join(label.split()).casefold(), label)
        if like != label:
            yield f"the labels {like!r} and {label!r} differ by blanks or case only, and count as two"


def of_few(train: Sequence[Item]) -> Iterator[str]:
    """Too little to learn from."""
    if len(train) < FEW:
        yield f"{len(train)} examples teach a task little, and its figures mean little; {FEW} are few already"


def of_length(train: Sequence[Item], max_length: int, key: str) -> Iterator[str]:
    """Texts that a task reads only a part of; ``key`` is that of its ``max_length`` in the task file."""
    lengths = sorted(item.length + item.cut for item in train if isinstance(item, Example))
    longer, may_be_cut = sum(length > max_length for length in lengths), int(CUT * len(lengths))
    if longer > may_be_cut:
        yield (
            f"{longer} of {len(lengths)} texts have more tokens than max_length {max_length}: they are cut there, and "
            f"texts in use will be; set {key} to {lengths[-1 - may_be_cut]}, or to what the model reads if that is less"
        )


def of_joints(train: Sequence[Item]) -> Iterator[str]:
    """Completions that nothing parts from the last word of their prompts, as most are not meant to be."""
    joined = sum(isinstance(item, Completion) and item.in_a_word for item in train)
    if 2 * joined > len(train):
        yield (
            f"{joined} of {len(train)} completions go on with the last word of their prompts, since nothing is put "
            "between: begin completions that are words of their own with a blank or a new line"
        )


def of_template(asked: Asked | None) -> Iterator[str]:
    """Conversations without the template that a model of conversations comes with."""
    if asked is not None and asked.generation.prompts == "chat" and asked.tokenizer.chat_template is None:
        yield (
            "the model has no chat template: the messages' texts are read instead, each with a new line behind it, and "
            "their roles are not"
        )


def of_held_out(used: Sequence[Item], held_out: Sequence[Item], split: str = "training") -> Iterator[str]:
    """Held-out items, or prompts, that were used before as items of another split."""
    known = set(map(_content, used))
    seen = sum(_content(item) in known for item in held_out)
    if seen > SHARE * len(held_out):
        yield (
            f"{seen} of {len(held_out)} examples are {split} examples too: what is measured on them is too good; "
            "take them out of one of the two files"
        )


def _content(item: Item) -> Hashable:
    """What the model sees of it; of a prompt with a completion the prompt alone."""
    if isinstance(item, Picture):
        return item.path.resolve()
    return item.prompt if isinstance(item, Completion) else tuple(item.tokens)
