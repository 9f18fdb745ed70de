"""A text that grows token by token: what may be shown of it already, and when it ends."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from weightpager.answers.generation.continued_text import CHARACTER, INCOMPLETE, Decode
from weightpager.answers.work import Generated


class Continuation:
    """One prompt's continuation.

    Attributes:
        ended: why it has ended; None while it goes on.
    """

    def __init__(self, decode: Decode, most: int, stop: Sequence[str], end: Collection[int]) -> None:
        """Nothing has been generated.

        Args:
            decode: token ids to text, special ones left out.
            most: tokens.
            stop: texts that end it; what begins with one is cut off.
            end: tokens that end it.
        """
        self._decode = decode
        self._most = most
        self._stop = tuple(stop)
        self._end = end
        self._ids: list[int] = []
        self._text = ""
        self._shown = ""
        self._changed = 0  # tokens in a row, behind which what was shown isn't the text's beginning any more
        self.ended: Literal["stop", "length"] | None = None

    def add(self, token: int) -> str:
        """Add a token; the further text that can be shown.

        Characters that aren't complete yet are kept back, and as many as may turn out to begin a stop text.
        """
        assert self.ended is None
        if token in self._end:
            self.ended = "stop"
        self._ids.append(token)
        self._text = self._decode(self._ids)
        cuts = [place for place in (self._text.find(stop) for stop in self._stop) if place >= 0]
        if cuts:
            self._text = self._text[: min(cuts)]
            self.ended = "stop"
        elif self.ended is None and len(self._ids) >= self._most:
            self.ended = "length"
        return self._show(self._text if self.ended else self._safe())

    def outcome(self) -> Generated:
        """The whole continuation, once it has ended."""
        assert self.ended is not None
        return Generated(self._text, len(self._ids), self.ended)

    def _safe(self) -> str:
        held = max((len(stop) - 1 for stop in self._stop), default=0)
        text = self._text.rstrip(INCOMPLETE)  # some decoders give one for each byte that waits
        return text[: max(0, len(text) - held)]

    def _show(self, text: str) -> str:
        # A decoder may change what it has said, blanks mostly: nothing is shown until the beginning is the same again.
        # Some never take back what bytes of no character have made of those before them: the rest follows then.
        if text.startswith(self._shown):
            self._changed = 0
        else:
            self._changed += 1
            if self._changed <= CHARACTER and self.ended is None:
                return ""
            self._shown = _common_beginning(text, self._shown)
        fresh, self._shown = text[len(self._shown) :], text
        return fresh


def _common_beginning(text: str, other: str) -> str:
    differing = (place for place, (one, two) in enumerate(zip(text, other, strict=False)) if one != two)
    return text[: next(differing, min(len(text), len(other)))]
