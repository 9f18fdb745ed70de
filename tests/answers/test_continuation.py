from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightpager.answers.generation import Continuation, Decode

END = 256


def decode(ids: object) -> str:
    """Tokens are bytes, so that characters may be incomplete."""
    return bytes(number for number in ids if number != END).decode("utf-8", "replace")  # type: ignore[attr-defined]


def decode_by_bytes(ids: object) -> str:
    """The same, but every byte that waits for others is a sign of its own."""
    content = bytes(number for number in ids if number != END)  # type: ignore[attr-defined]
    whole = content.decode("utf-8", "ignore")
    return whole + "\N{REPLACEMENT CHARACTER}" * (len(content) - len(whole.encode()))


texts = st.text(st.sampled_from("abé∑ \n"), max_size=30)


@pytest.mark.parametrize("decode", [decode, decode_by_bytes])
@given(
    text=texts, stop=st.lists(st.text(st.sampled_from("abé"), min_size=1, max_size=3), max_size=3), ends=st.booleans()
)
def test_what_is_shown_is_what_comes_out(decode: Decode, text: str, stop: list[str], ends: bool) -> None:
    ends = ends or not text
    tokens = [*text.encode(), *([END] if ends else [])]
    growing = Continuation(decode, len(tokens), stop, {END})
    shown = ""
    for token in tokens:
        shown += growing.add(token)
        assert text.startswith(shown)
        if growing.ended:
            break
    found = growing.outcome()
    # The stop text that is complete first counts, also where one that began earlier could still have come.
    beginnings = (decode(tokens[:count]) for count in range(len(tokens) + 1))
    cuts = ([place for place in (beginning.find(one) for one in stop) if place >= 0] for beginning in beginnings)
    cut = min(next((found for found in cuts if found), [len(text)]))
    assert shown == found.text == text[:cut]
    assert found.reason == ("length" if cut == len(text) and not ends else "stop")


def decode_in_runs(ids: object) -> str:
    """Tokens are bytes, and none of a run of them is a character where one isn't: as `ByteFallback` decodes."""
    content = bytes(ids)  # type: ignore[call-overload]
    head, digits, rest = content[:0], content[: len(content) - len(content.lstrip(b"\n\xf0"))], content
    rest = rest[len(digits) :]
    try:
        said = (head + digits).decode()
    except UnicodeDecodeError:
        said = "\N{REPLACEMENT CHARACTER}" * len(digits)
    return said + rest.decode()


def test_text_behind_bytes_of_no_character_is_shown() -> None:
    tokens = b"\n\xf0 a b a and more"
    growing = Continuation(decode_in_runs, len(tokens), [], {END})
    pieces = [growing.add(token) for token in tokens]
    whole = growing.outcome().text
    assert whole == "\N{REPLACEMENT CHARACTER}" * 2 + " a b a and more"
    assert pieces[0] == "\n"
    assert "".join(pieces[1:]) == whole
    assert pieces[-1] == "e"  # it goes on before the end


def test_a_text_that_ends_behind_bytes_of_no_character_is_shown() -> None:
    growing = Continuation(decode_in_runs, 4, [], {END})
    assert [growing.add(token) for token in b"\n\xf0 a"] == ["\n", "", "", "\N{REPLACEMENT CHARACTER}" * 2 + " a"]


def test_it_ends_after_so_many_tokens() -> None:
    growing = Continuation(decode, 2, [], {END})
    assert growing.add(ord("a")) == "a"
    assert growing.ended is None
    assert growing.add(ord("b")) == "b"
    assert growing.outcome().reason == "length"


def test_it_ends_with_an_end_token() -> None:
    growing = Continuation(decode, 9, [], {END})
    growing.add(ord("a"))
    assert growing.add(END) == ""
    assert (growing.outcome().text, growing.outcome().reason, growing.outcome().tokens) == ("a", "stop", 2)
