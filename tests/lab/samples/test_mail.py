from __future__ import annotations

import pytest

from weightpager_lab.samples import mail
from weightpager_lab.samples.mail import Mail, items, label_of, parse_mail

LIST_MAIL = b"""From: Ann <ann@example.org>
Received: from somewhere
Subject: Re: [gardeners] Re: Tulips in May
List-Id: <gardeners.example.org>
Content-Type: text/plain

On Tue, 3 Apr 2001 10:12, Bob wrote:
> Do they need water?
) From: someone else
They do; see http://example.org/tulips or ask eve@example.org.

--\x20
Ann, queen of gardeners
_______________________________________________
Gardeners mailing list
"""
PAGE = b"""Subject: =?utf-8?q?Caf=C3=A9?=
MIME-Version: 1.0
Content-Type: text/html; charset=utf-8

<html><head><title>no</title><style>p {color: red}</style></head><body><!-- nor this -->
<p>Fish &amp; chips<br>From: the sea<p onclick="x > y">twice</body></html>
"""


def test_a_mail_from_a_list() -> None:
    assert parse_mail(LIST_MAIL) == Mail("Tulips in May", "Do they need water? They do; see (link) or ask (address).")


def test_an_advertisement_of_the_host_is_cut() -> None:
    text = "Hello\n-------\nThis sf.net email is sponsored by:ThinkGeek\nWelcome to geek heaven.\n"
    assert mail.clean_body(text) == "Hello"


def test_a_page() -> None:
    found = parse_mail(PAGE)
    assert found.subject == "Café"
    assert found.body.startswith("Fish & chips")
    assert "color" not in found.body
    assert "nor this" not in found.body
    assert "From:" not in found.body


def test_plain_text_is_preferred_to_html() -> None:
    raw = (
        b'Content-Type: multipart/alternative; boundary="b"\n\n--b\nContent-Type: text/html\n\n<p>page</p>\n'
        b"--b\nContent-Type: text/plain\n\ntext\n--b--\n"
    )
    assert parse_mail(raw).body == "text"


@pytest.mark.parametrize(
    ("subject", "clean"),
    [
        ("[ILUG] lunch", "lunch"),
        ("Re: [ILUG] Fwd: RE:  lunch", "lunch"),
        ("FW:>Re[2]: lunch", "lunch"),
        ("eve@example.org: lunch at http://example.org", "(address): lunch at (link)"),
        ("regarding lunch", "regarding lunch"),
        ("", ""),
    ],
)
def test_subjects(subject: str, clean: str) -> None:
    assert mail.clean_subject(subject) == clean


def test_a_long_paragraph_is_kept_whatever_it_mentions() -> None:
    paragraph = "Our mailing list is the best. " * 10
    assert mail.clean_body(paragraph) == paragraph.strip()


@pytest.mark.parametrize("charset", ["no-such-charset", "utf-8", "us-ascii", "idna"])
def test_wrong_character_sets(charset: str) -> None:
    raw = f"Content-Type: text/plain; charset={charset}\nSubject: =?{charset}?q?=E9t=E9?=\n\n".encode() + b"\xe9t\xe9"
    assert parse_mail(raw).body == "été"


def test_a_footer_after_base64() -> None:
    raw = b"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: base64\n\n"
    assert parse_mail(raw + b"w6l0w6kg\nw6l0w6k=\n\n_______\nA footer\n").body == "été été"
    assert parse_mail(raw + b"w6l0w6kg\nw6\n\n-- \nA footer\n").body == "été"


def test_a_subject_of_bytes_that_nobody_declared() -> None:
    assert parse_mail(b"Subject: caf\xe9\n\nx").subject == "café"


def test_a_broken_encoded_word() -> None:
    assert parse_mail(b"Subject: =?utf-8?b?abcde?=\n\nx").body == "x"


def test_a_mail_without_text() -> None:
    assert parse_mail(b"Content-Type: image/png\n\n\x89PNG") == Mail("", "")


def test_a_thread_is_one_group() -> None:
    mails = [(Mail("Lunch", "who comes along today?"), "ham"), (Mail("lunch", "not me, I have no time"), "ham")]
    first, second = items([*mails])
    assert first.group == second.group
    assert first.row == {"text": "Lunch. who comes along today?", "label": "ham"}


def test_labels() -> None:
    assert label_of("package/data/hard-ham-1/00001.txt") == "ham"
    assert label_of("package/data/spam-2/00001.txt") == "spam"
