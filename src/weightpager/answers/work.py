"""What one text or image asks of a task, and what comes of it: plain values."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from weightpager.config import is_number, is_whole
from weightpager.errors import ConfigError, shown
from weightpager.readers.image_processor import Pixels
from weightpager.readers.picture import Picture
from weightpager.readers.picture_reader import PictureReader

if TYPE_CHECKING:
    from weightpager.answers.grammar import Grammar

Ids = tuple[int, ...]

_PATCH = 16
"""Pixels of the side of an image's patch, as most models cut it."""


_GREEDY = 1e-3
"""Lower temperatures would draw the likeliest token anyway, and would make scores overflow."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: from the likeliest that make up ``top_p``, after division by a temperature; 0 is greedy.

    Attributes:
        frequency_penalty, presence_penalty: taken from a token's logit for each time that the answer has it so far, and
            once if it has it at all.
        bias: added to the logits of tokens, by their ids.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()

    @property
    def penalises(self) -> bool:
        """Whether what has been said counts."""
        return self.frequency_penalty != 0 or self.presence_penalty != 0

    @property
    def plain(self) -> bool:
        """Whether the likeliest token is taken as it is."""
        return self.temperature == 0 and not self.bias and not self.penalises

    @classmethod
    def of(cls, temperature: float | None, top_p: float | None, seed: int | None, *, greedy: bool = True) -> Sampling:
        """What a caller asks for.

        Args:
            temperature: 0 to 2; None for 0 where tokens are drawn greedily and ``top_p`` is 1, and for 1 otherwise.
            top_p: above 0 and up to 1; None for 1.
            seed: of 64 bits; None for a new one each time.
            greedy: whether tokens are drawn greedily unless something else is asked for.

        Raises:
            ConfigError: one is no number, or out of its range.
        """
        top_p = 1.0 if top_p is None else top_p
        if temperature is None:
            temperature = 0.0 if greedy and top_p == 1 else 1.0
        if not (is_number(temperature) and 0 <= temperature <= 2):
            raise ConfigError(f"temperature: expected a number from 0 to 2, found {shown(temperature)}")
        if not (is_number(top_p) and 0 < top_p <= 1):
            raise ConfigError(f"top_p: expected a number above 0 and up to 1, found {shown(top_p)}")
        if seed is not None and not (is_whole(seed) and -(2**63) <= seed < 2**63):
            raise ConfigError(f"seed: expected a whole number of 64 bits, found {shown(seed)}")
        if temperature < _GREEDY:
            return GREEDY
        return cls(float(temperature), float(top_p), None if seed is None else int(seed))


GREEDY = Sampling()
"""The likeliest token each time."""


@dataclass(frozen=True)
class _Text:
    """Token ids to be read. ``truncated`` says whether they are only a part of the text, which was cut."""

    ids: Ids
    truncated: bool = field(default=False, kw_only=True)

    @property
    def tokens(self) -> int:
        return len(self.ids)

    @property
    def kind(self) -> Hashable:
        """A key: works of the same key can run together."""
        return type(self).__name__


@dataclass(frozen=True)
class Generate(_Text):
    """Continue a prompt by so many tokens at most, or until a text of ``stop`` appears, which is cut off.

    Attributes:
        pictures: stand in the prompt, each in as many placeholders as it has features.
        grammar: that the continuation keeps to; None for any.
        logprobs: of how many of the likeliest tokens each place tells the logprob, beside the token's own; None for
            neither.
    """

    max_new_tokens: int
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    grammar: Grammar | None = None
    logprobs: int | None = None

    @property
    def kind(self) -> Hashable:
        return ("generate", self.sampling, id(self) if self.sampling.seed is not None else None)

    def shown(self, pictures: Sequence[Picture], reader: PictureReader) -> Generate:
        """The same with its pictures, each in as many places as it takes."""
        ids = reader.placed(self.ids, pictures)
        return replace(self, ids=ids, pictures=tuple(pictures))

    def within(self, room: int) -> Generate:
        """The same with so many tokens at most, prompt and continuation together; one is generated in any case."""
        return replace(self, max_new_tokens=max(1, min(self.max_new_tokens, room - self.tokens)))


def continuation(prompt: int, room: int, most: int, wanted: int | None = None) -> int:
    """Tokens that a prompt is continued by: those that are wanted, or up to ``most``, as many as there is room for.

    Args:
        prompt: its tokens.
        room: of prompt and continuation together.
        most: tokens where none are wanted.
        wanted: tokens that there must be room for.

    Raises:
        ValueError: there is no room; says what was found.
    """
    left, least = room - prompt, 1 if wanted is None else wanted
    if left < least:
        more = f" and {least} to be generated" if left > 0 else ", which leaves no room for an answer"
        raise ValueError(f"{prompt}{more}")
    return min(left, most) if wanted is None else wanted


@dataclass(frozen=True)
class Classify(_Text):
    """Find a text's class."""


@dataclass(frozen=True)
class Tag(_Text):
    """Find a tag for every word. ``starts`` has for every token the word that it begins, None for any other."""

    starts: tuple[int | None, ...]
    words: tuple[str, ...]


@dataclass(frozen=True)
class Embed(_Text):
    """Find a text's vector."""


@dataclass(frozen=True, eq=False)
class ClassifyImage:
    """Find an image's class. ``pixels`` is float32 [channels, height, width]."""

    pixels: Pixels

    @property
    def ids(self) -> Ids:
        return ()

    @property
    def truncated(self) -> bool:
        return False

    @property
    def tokens(self) -> int:
        """The number of patches of the usual size, as a measure of what the image takes to compute."""
        _, height, width = self.pixels.shape
        return max(1, int(height * width) // _PATCH**2)

    @property
    def kind(self) -> Hashable:
        return ("classify image", self.pixels.shape)


Work = Generate | Classify | Tag | Embed | ClassifyImage


@dataclass(frozen=True)
class TokenLogprob:
    """One token of an answer.

    Attributes:
        token: its bytes, which may be a part of a character.
        logprob: natural logarithm of its probability.
        top: the likeliest tokens in its place, with theirs.
        start: characters of the answer before it.
    """

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]
    start: int


Logprobs = tuple[TokenLogprob, ...]


@dataclass(frozen=True)
class Generated:
    """A continuation; ``logprobs`` are of its tokens where they were asked for, without one that ended it."""

    text: str
    tokens: int
    reason: Literal["stop", "length"]
    logprobs: Logprobs | None = None


@dataclass(frozen=True)
class Classified:
    """Probabilities in the order of the task's classes."""

    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Tagged:
    """(word, number of its class, probability) of every word that was read."""

    tags: tuple[tuple[str, int, float], ...]


@dataclass(frozen=True)
class Embedded:
    vector: tuple[float, ...]


Outcome = Generated | Classified | Tagged | Embedded
