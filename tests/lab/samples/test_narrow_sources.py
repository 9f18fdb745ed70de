"""What is read for narrow jobs, on archives made here."""

from __future__ import annotations

from pathlib import Path

import pytest

from handmade import tarball, wheel
from weightpager_lab.samples import narrow_tasks, tasks
from weightpager_lab.samples.recipes import document, split_of


def test_strings_keep_their_placeholders_and_share_groups_with_the_language_task(tmp_path: Path) -> None:
    entries = [
        'msgid "The %s was deleted."\nmsgstr "Der %s wurde leider gelöscht"',
        'msgid "one file"\nmsgid_plural "%d files"\nmsgstr[0] "eine Datei"\nmsgstr[1] "%d Dateien"',
        'msgid "same"\nmsgstr "same"',
        'msgid "two\\nlines"\nmsgstr "zwei"',
    ]
    first, second = tmp_path / "django.whl", tmp_path / "shop.whl"
    first.write_bytes(wheel({"django/conf/locale/de/LC_MESSAGES/django.po": "\n\n".join(entries).encode()}))
    second.write_bytes(wheel({"shop/locale/de/LC_MESSAGES/django.po": b'msgid "the was DELETED."\nmsgstr "Weg"'}))
    deleted, files, again = narrow_tasks.translate([first, second])
    assert deleted.row == {
        "prompt": "The %s was deleted.\nGerman:",
        "completion": " Der %s wurde leider gelöscht",
    }
    assert files.row == {"prompt": "%d files\nGerman:", "completion": " %d Dateien"}
    assert again.group == deleted.group == next(iter(tasks.read_language(first))).group


def test_sentences_lose_case_and_marks(tmp_path: Path) -> None:
    path = tmp_path / "brown.tgz"
    text = "``/`` Well/uh ,/, it's/pps+bez John/np's well-made/jj clock/nn !/. ''/''\nShort/jj ./.\n"
    files = {"ca01": text.encode(), "cats.txt": b"ca01 news\n"}
    path.write_bytes(tarball({f"package/{name}": content for name, content in files.items()}))
    (item,) = narrow_tasks.punctuate(path)
    assert item.row["prompt"] == "well it's john well-made clock\nPrinted:"
    assert item.row["completion"] == ' "Well, it\'s John well-made clock!"'
    assert item.group == "brown/ca01"


def test_wanted_mails_with_a_subject_are_given_one(tmp_path: Path) -> None:
    body = b"\n\nA text that is long enough to be kept."
    subjects = {"easy-ham-1/1": b"Re: [list] a good day", "easy-ham-1/2": b"hello", "spam-2/1": b"buy it now"}
    path = tmp_path / "spam.tgz"
    path.write_bytes(
        tarball({f"package/data/{name}.txt": b"Subject: " + text + body for name, text in subjects.items()})
    )
    (item,) = narrow_tasks.title(path)
    assert item.row == {
        "prompt": "A text that is long enough to be kept.\nSubject:",
        "completion": " a good day",
    }


MODULE = '''
class Shelf:
    def put(self, book):
        """Put a book onto the shelf.

        More of it.
        """
        self.books.append(book)  # at the end

    def stub(self):
        """Say nothing at all about it."""

async def fetch():
    """Short."""
    return 1

def silent():
    return 2
'''


def test_functions_are_described_and_show_nothing_of_it() -> None:
    (item,) = narrow_tasks.describe([document(MODULE, "python/shelf.py"), document("def broken(", "python/broken.py")])
    assert item.row["prompt"] == "def put(self, book):\n    self.books.append(book)\nDocstring:"
    assert item.row["completion"] == " Put a book onto the shelf."
    assert item.group == "python/shelf.py"


def test_values_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("num2words")
    pytest.importorskip("babel")
    monkeypatch.setattr(narrow_tasks, "_EACH", 60)
    items = list(narrow_tasks.normalise_spoken())
    assert len(items) == 120
    assert items == list(narrow_tasks.normalise_spoken())
    written = {item.row["prompt"]: item.row["completion"] for item in items}
    assert any(completion.count("-") == 2 for completion in written.values())
    assert all(item.group == f"spoken/{item.row['completion'].strip()}" for item in items)
    dates = [item.row["prompt"] for item in items if "-" in item.row["completion"]]
    assert not any(character.isdigit() for prompt in dates for character in prompt)


def test_every_job_has_a_metric() -> None:
    assert {recipe.name for recipe in narrow_tasks._recipes()} == set(narrow_tasks.METRICS)
    assert all(recipe.kind == "text-generation" for recipe in narrow_tasks._recipes())


def test_a_value_is_held_out_in_all_languages() -> None:
    assert split_of("spoken/1984-03-03") == split_of("spoken/1984-03-03")
    assert {split_of(f"spoken/{value}") for value in range(100)} == {"train", "validation", "eval"}
