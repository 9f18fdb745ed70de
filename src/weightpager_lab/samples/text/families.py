"""Texts that quote each other."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

_WORD = re.compile(r"\w+")


def families(
    texts: Sequence[str], *, threads: Sequence[str] | None = None, run: int = 12, common: int = 10
) -> list[str]:
    """A group name for each text; texts that share a long run of words, directly or through others, share a group.

    News sites print an article twice with small changes, people answer mails with the question below, and senders of
    bulk mail vary a few words. Such texts differ, but a model that was trained on one knows the other.

    Args:
        texts: the texts.
        threads: one name per text; texts of the same thread are relatives too, unless its name is empty.
        run: how many consecutive words make two texts relatives.
        common: a run that more texts share is a formula (a footer, a disclaimer), which makes no relatives.

    Returns:
        The name of each text's group: the family's first text in alphabetical order.
    """
    holders: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, text in enumerate(texts):
        for words in _runs(text, run):
            holders[words].append(index)
    relatives = [group for group in holders.values() if len(group) <= common]
    if threads is not None:
        relatives += _positions(threads)
    parents = list(range(len(texts)))
    for group in relatives:
        for other in group[1:]:
            _join(parents, group[0], other, texts)
    return [texts[_root(parents, index)] for index in range(len(texts))]


def _positions(names: Sequence[str]) -> list[list[int]]:
    positions: defaultdict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(names):
        if name:
            positions[name].append(index)
    return list(positions.values())


def _runs(text: str, length: int) -> set[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}


def _join(parents: list[int], one: int, other: int, texts: Sequence[str]) -> None:
    low, high = sorted((_root(parents, one), _root(parents, other)), key=lambda index: texts[index])
    parents[high] = low


def _root(parents: list[int], index: int) -> int:
    while parents[index] != index:
        parents[index] = parents[parents[index]]
        index = parents[index]
    return index
