"""Short explanations of words in the output. They are printed where the words are."""

from __future__ import annotations

MEANINGS = {
    "affinity": "a request goes to the replica that lacks the fewest bytes of its task, weighed against its queue",
    "alignment": "λ, what a block loaded per switch costs when blocks are chosen; the more, the more tasks share",
    "arena": "memory for pages",
    "brackets": "95 % confidence interval",
    "duality gap": "how far the choice of blocks may be from the best one",
    "overlap": "share of a task's bytes that the task before it keeps too",
    "oracle": "knows the whole trace; what is needed last goes first. No lower bound: another routing may be better",
    "over-read": "share of a task's pages that it doesn't use",
    "private": "a task's own, such as its head",
    "in vain": "prefetched, and gone again before any use",
    "there in time": "of the pages that had to be loaded, the share that prefetching had brought before the switch",
    "without a wait": "switches that found all their pages in memory, prefetched or still there from before",
}
"""Words of the architecture's table are explained as that has them, only shorter."""


def legend(*words: str) -> str:
    """A line that explains the words."""
    return "; ".join(f"{word}: {MEANINGS[word]}" for word in words)
