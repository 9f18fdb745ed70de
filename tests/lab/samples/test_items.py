from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from weightpager_lab.samples.recipes import Item, distinct, labelled, split_of, subset, tagged

HELD_OUT = ["brown/ca06", "brown/ca09", "brown/ca25", "brown/ca27", "brown/ca28"]


def texts(items: list[Item]) -> list[str]:
    return [item.text for item in items]


def test_duplicates_differ_only_in_case_and_space() -> None:
    items = [labelled(text, "x", text) for text in ("One  more", "one more", " ONE\nMORE ", "one, more")]
    assert texts(distinct(items)) == ["One  more", "one, more"]


def test_a_text_with_contradicting_labels_is_dropped_altogether() -> None:
    items = [labelled("same", "ham", "1"), labelled("Same", "spam", "2"), labelled("other", "ham", "3")]
    assert texts(distinct(items)) == ["other"]


def test_rows() -> None:
    assert labelled("a text", "x", "g").row == {"text": "a text", "label": "x"}
    item = tagged(["The", "end", "."], ["DET", "NOUN", "."], "g")
    assert item.row == {"tokens": ["The", "end", "."], "tags": ["DET", "NOUN", "."]}
    assert set(item.labels) == {"DET", "NOUN", "."}


def test_splits_never_change() -> None:
    """These groups are held out forever: a change here makes every published number wrong."""
    held_out = [f"brown/ca{number:02}" for number in range(1, 30) if split_of(f"brown/ca{number:02}") != "train"]
    assert held_out == HELD_OUT


def test_shares_of_the_splits() -> None:
    counts = Counter(split_of(f"group {number}") for number in range(20_000))
    assert abs(counts["eval"] / 20_000 - 0.2) < 0.01
    assert abs(counts["validation"] / 20_000 - 0.1) < 0.01


@given(st.lists(st.tuples(st.text(max_size=5), st.sampled_from("abc")), unique_by=lambda row: row[0]), st.randoms())
def test_a_subset_depends_on_the_set_alone(rows: list[tuple[str, str]], random) -> None:  # type: ignore[no-untyped-def]
    items = [labelled(text, label, text) for text, label in rows]
    shuffled = random.sample(items, len(items))
    assert subset(items, 4) == subset(shuffled, 4)
    assert subset(items, 2) == subset(items, 4)[:2]
    assert sorted(texts(subset(items, len(items)))) == sorted(texts(items))


@given(st.lists(st.sets(st.sampled_from("abcdef"), min_size=1), min_size=1, max_size=30))
def test_a_small_subset_covers_every_class(tags: list[set[str]]) -> None:
    items = [tagged([f"word{number}"], sorted(labels), "g") for number, labels in enumerate(tags)]
    covered = {label for item in subset(items, 6) for label in item.labels}
    assert covered == set().union(*tags)
