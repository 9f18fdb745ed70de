"""Labelled items, put together into batches of similar length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

from weightpager.answers.model import Inputs
from weightpager.bundle.format.manifest import FORMS, TaskKind

Labelled = tuple[Inputs, Any]
"""A batch: a model's inputs, and labels: int64 [items] where texts or images are classified, else [texts, tokens].

Of language modeling they are the input ids, which its `Kind` shifts; of completions these alone. Where prompts are to
be answered, the inputs are the prompts and the labels a tuple of the texts that are wanted.
"""

EVAL_BATCH = 32
"""Texts or images in a batch while measuring."""

# Logits of a large vocabulary, not activations, decide how much memory a batch of a language model takes.
_LANGUAGE_MODEL_TOKENS = 2048

_Batch = TypeVar("_Batch")
_Other = TypeVar("_Other")


class Batches(Sequence[_Batch], Generic[_Batch]):
    """Batches that are made whenever they are asked for: pixels of all images at once might not fit."""

    def __init__(self, parts: Sequence[Sequence[Any]], collate: Callable[[Sequence[Any]], _Batch]) -> None:
        self._parts = parts
        self._collate = collate

    def mapped(self, change: Callable[[_Batch], _Other]) -> Batches[_Other]:
        """The same batches, each changed when it is made."""
        return Batches(self._parts, lambda items: change(self._collate(items)))

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, index: int) -> _Batch: ...
    @overload
    def __getitem__(self, index: slice) -> Batches[_Batch]: ...
    def __getitem__(self, index: int | slice) -> _Batch | Batches[_Batch]:
        if isinstance(index, slice):
            return Batches(self._parts[index], self._collate)
        return self._collate(self._parts[index])


def batched(
    items: Sequence[Any], size: int, kind: TaskKind, collate: Callable[[Sequence[Any]], _Batch]
) -> Batches[_Batch]:
    """Every item once, sorted by length because padding costs as much as text does.

    Texts of a language model come in batches of at most 2048 tokens, padding included, or one by one.
    """
    ordered = sorted(items, key=lambda item: int(item.length))
    return Batches(list(_parts(ordered, size, kind)), collate)


def _parts(ordered: Sequence[Any], size: int, kind: TaskKind) -> Iterator[Sequence[Any]]:
    """Items in a row, the longest last, that make a batch each."""
    start = 0
    for stop in range(1, len(ordered) + 1):
        if stop == len(ordered) or stop - start >= at_once(size, ordered[stop].length, kind):
            yield ordered[start:stop]
            start = stop


def at_once(size: int, length: int, kind: TaskKind) -> int:
    """Items of this many tokens that `batched` puts into a batch of ``size`` at most."""
    return min(size, max(1, _LANGUAGE_MODEL_TOKENS // length)) if FORMS[kind].writes else size
