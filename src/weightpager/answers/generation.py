"""Texts that a model continues: one pass at a time, with what has been written so far."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from itertools import repeat
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from weightpager.answers.batches import Bounds, batches
from weightpager.answers.decoding import GrowingTexts
from weightpager.answers.kept import NOTHING_KEPT, Kept
from weightpager.answers.logprobs import AnswerLogprobs
from weightpager.answers.model import (
    Floats,
    Inputs,
    Integers,
    PlacedFeatures,
    TaskModel,
    parts_of,
    picture_parts,
)
from weightpager.answers.query import BlockingQuery, Query, pad_id, padded
from weightpager.answers.work import Generate, Generated, TokenLogprob
from weightpager.bundle.format.manifest import Pictures
from weightpager.errors import RequestError
from weightpager.readers.packed_tiles import Size, order, tile_count
from weightpager.readers.patch_processor import Grid
from weightpager.readers.picture import Picture
from weightpager.readers.tokenizer import Tokenizer

_CONTEXT = 8
"""Tokens of a prompt that are decoded together with what follows, or more if need be."""

CHARACTER = 4
"""Bytes that a character has at most, and so the tokens that it may be spread over."""

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What decoders give for bytes that don't make up a character yet."""


Decode = Callable[[Sequence[int]], str]


def decoder_after(tokenizer: Tokenizer, prompt: Sequence[int]) -> Decode:
    """Decodes what follows a prompt, special tokens left out.

    A token's text may depend on what stands before it: many decoders drop the blank that a text's first word begins
    with, so that nobody could tell a new word from the rest of the prompt's last one. Where the prompt ends in the
    middle of a character, that whole character follows, once it is complete.
    """
    decode = tokenizer.decode
    context = _context(decode, prompt)
    befores = [decode(context), decode(_complete(decode, context))]

    def decode_after(ids: Sequence[int]) -> str:
        text = decode([*context, *ids])
        for before in befores:
            if text.startswith(before):
                return text[len(before) :]
        return decode(ids)  # as long as a character is incomplete, some decoders take back those that its bytes follow

    return decode_after


def _context(decode: Decode, prompt: Sequence[int]) -> list[int]:
    """The last tokens of a prompt that decode as they do in the whole: to a text that begins with a whole character."""
    for length in _lengths(len(prompt)):
        context = list(prompt[-length:])
        text = decode(_complete(decode, context))
        if text and not text.startswith(INCOMPLETE):
            return context
    return list(prompt)


def _lengths(most: int) -> Iterator[int]:
    """Lengths of contexts to try, below ``most``: one token more for a character, then twice as many each time."""
    yield from range(_CONTEXT, min(_CONTEXT + CHARACTER, most))
    length = 2 * _CONTEXT
    while length < most:
        yield length
        length *= 2


def _complete(decode: Decode, ids: Sequence[int]) -> Sequence[int]:
    """Tokens without those of a last character whose end is missing; all where there is none."""
    whole = (ids[: len(ids) - begun] for begun in range(min(CHARACTER - 1, len(ids)) + 1))
    return next((some for some in whole if not decode(some).endswith(INCOMPLETE)), ids)


class Continuation:
    """One prompt's continuation.

    Attributes:
        ended: why it has ended; None while it goes on.
        cut: whether a stop text was cut off at its end.
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
        self.cut = False

    @property
    def whole(self) -> int:
        """Characters so far, without one that isn't complete."""
        return len(self._text.rstrip(INCOMPLETE))

    @property
    def shown(self) -> float:
        """Characters that have been shown; any number once nothing follows."""
        return len(self._shown) if self.ended is None or self.cut else math.inf

    def add(self, token: int, *, last: bool = False) -> str:
        """Add a token, which may be the ``last`` that can come; the further text that can be shown.

        Characters that aren't complete yet are kept back, and as many as may turn out to begin a stop text.
        """
        assert self.ended is None
        if last or token in self._end:
            self.ended = "stop"
        self._ids.append(token)
        self._text = self._decode(self._ids)
        cuts = [place for place in (self._text.find(stop) for stop in self._stop) if place >= 0]
        if cuts:
            self._text = self._text[: min(cuts)]
            self.ended, self.cut = "stop", True
        elif self.ended is None and len(self._ids) >= self._most:
            self.ended = "length"
        return self._show(self._text if self.ended else self._safe())

    def outcome(self) -> Generated:
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


class GenerationRun:
    """Continues prompts that can run together. Implements `Run`.

    A query that nobody waits for any more ends after the token, the piece of its prompt or the picture that is being
    computed.
    """

    def __init__(
        self,
        model: TaskModel,
        tokenizer: Tokenizer,
        queries: Sequence[Query],
        clock: Callable[[], float] = time.monotonic,
        kept: Kept = NOTHING_KEPT,
    ) -> None:
        """Nothing has been read; ``tokenizer`` is the calling thread's own. ``kept`` may be taken over."""
        self._model, self._kept = model, kept
        self._rows = [_Row(query, model, tokenizer) for query in queries]
        self._pad = pad_id(model.vocab_size, tokenizer)
        self._form = None if tokenizer.pictures is None else tokenizer.pictures.pictures
        self._clock = clock
        self._grown = 0
        # Of prompts that are read together, padding and each other's lengths decide on the bits.
        self._prefixes = kept.prefixes if len(queries) == 1 else None
        self._texts: GrowingTexts | None = None
        if not any(row.unseen for row in self._rows):  # else prompts are read when their pictures have been seen
            self._texts = self._begin()

    def step(self, until: float) -> int:
        """See more of the pictures, read more of the prompts, or generate more, until a time.

        Returns how many tokens were generated.
        """
        left = self._forget()
        while left and (row := next((row for row in self._rows if row.unseen), None)) is not None:
            row.features.append(self._kept.features(self._model, row.unseen.pop(0)))
            left = self._forget()
            if self._clock() >= until:
                return 0
        if not left:
            return 0
        texts = self._texts = self._texts or self._begin()
        if self._prefixes is not None:
            texts.take_over(self._prefixes.of(texts.ids[0], self._rows[0].work.pictures, self._form))
            self._prefixes = None
        while left and texts.unread:
            texts.read_piece()
            left = self._forget()
            if self._clock() >= until:
                return 0
        return self._grow(texts, until) if left else 0

    def _begin(self) -> GrowingTexts:
        works = [row.work for row in self._rows]
        batch = padded([work.ids for work in works], self._pad, left=True)
        ids, mask, most = batch["input_ids"], batch["attention_mask"], max(work.max_new_tokens for work in works)
        features, placed = [each for row in self._rows for each in row.features], None
        grids = [picture.grid for row in self._rows for picture in row.work.pictures if picture.grid is not None]
        if features:
            assert self._form is not None  # whoever read the pictures had it
            placed = PlacedFeatures.of(ids, mask, self._form.token_id, features, grids or None)
            for row in self._rows:
                row.features.clear()  # which may leave the cache now
        return self._model.grow(ids, mask, works[0].sampling, self._pad, most, placed)

    def _grow(self, texts: GrowingTexts, until: float) -> int:
        watch = _Watch(self._rows, until if texts.stoppable else None, self._clock)
        weigh = watch.weigh if any(row.watches for row in self._rows) else None
        texts.grow(max(row.work.max_new_tokens for row in self._rows) - self._grown, watch.see, weigh)
        if all(row.query.over for row in self._rows):
            texts.keep_rest()
        self._grown += watch.steps
        return watch.tokens

    def _forget(self) -> int:
        """Let go of texts that are over, or that nobody waits for; how many are left."""
        now = self._clock()
        left = [place for place, row in enumerate(self._rows) if not row.query.expire(now)]
        if left and len(left) < len(self._rows) and (self._texts is None or self._texts.stoppable):
            self._rows = [self._rows[place] for place in left]
            if self._texts is not None:
                self._texts.keep(left)
        return len(left)


def _eos_token_ids(model: TaskModel, tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that end a text, by the model or by its tokenizer."""
    return model.eos_token_ids if tokenizer.end_id is None else model.eos_token_ids | {tokenizer.end_id}


class _Row:
    def __init__(self, query: Query, model: TaskModel, tokenizer: Tokenizer) -> None:
        assert isinstance(query.work, Generate)
        self.query, self.work = query, query.work
        self.unseen, self.features = list(self.work.pictures), list[Floats]()
        decode, end = decoder_after(tokenizer, self.work.ids), _eos_token_ids(model, tokenizer)
        self._continuation = Continuation(decode, self.work.max_new_tokens, self.work.stop, end)
        self._end, self._guide = end, None if self.work.grammar is None else self.work.grammar.begin(end)
        self._logprobs = None if self.work.logprobs is None else AnswerLogprobs(tokenizer.bytes, self.work.logprobs)
        self._logits: Floats | None = None
        self._told: list[TokenLogprob] = []

    @property
    def watches(self) -> bool:
        """Whether it wants to know the logits of each token."""
        return self._guide is not None or self._logprobs is not None

    def weigh(self, logits: Floats) -> Floats:
        """The logits, [words], to draw the next token by; the query may fail here."""
        self._logits = logits
        if self._guide is None:
            return logits
        try:
            allowed = self._guide.allowed()
        except RequestError as error:
            self.query.fail(error)
            return logits
        weighed: Floats = np.where(allowed, logits, np.float32(-np.inf))
        return weighed

    def add(self, token: int, now: float) -> None:
        if self.query.expire(now):
            return
        ends = token in self._end
        if self._guide is not None and not ends:
            self._guide.take(token)
        if self._logprobs is not None and self._logits is not None and not ends:
            self._logprobs.add(self._logits, token, self._continuation.whole)
        text = self._continuation.add(token, last=self._guide is not None and self._guide.complete)
        told = () if self._logprobs is None else self._logprobs.take(self._continuation.shown)
        self._told += told
        if text or told:
            self.query.more(text, told)
        if self._continuation.ended is not None:
            logprobs = None if self._logprobs is None else tuple(self._told)
            self.query.done(replace(self._continuation.outcome(), logprobs=logprobs))


class _Watch:
    """Sees each token of each row. It tells the model which rows are over.

    When the step's time is up it says that of all rows, which is a pause.
    """

    def __init__(self, rows: Sequence[_Row], until: float | None, clock: Callable[[], float]) -> None:
        self._rows = rows
        self._until = until
        self._clock = clock
        self.tokens = 0
        self.steps = 0

    def weigh(self, logits: Floats) -> Floats:
        rows = zip(self._rows, logits, strict=True)
        return np.stack([each if row.query.over else row.weigh(each) for row, each in rows])

    def see(self, tokens: Integers) -> npt.NDArray[np.bool_]:
        self.steps += 1
        for row, token in zip(self._rows, tokens.tolist(), strict=True):
            if not row.query.over:
                self.tokens += 1
                row.add(token, self._clock())
        pause = self._until is not None and self._clock() >= self._until
        return np.array([pause or row.query.over for row in self._rows])


def completions(model: TaskModel, tokenizer: Any, inputs: Inputs, most: int) -> list[str]:
    """The greedy continuation of each prompt of a batch, up to a token that ends it or ``most`` tokens.

    They are read together, as far as the model and `CACHED_TOKENS` have room for all of them, and computed as
    `weightpager run` and the server compute them. A continuation ends where the model can read no more.

    Args:
        model: whose task is active.
        tokenizer: of the model, a `Tokenizer`.
        inputs: ``input_ids`` and ``attention_mask``, int64 [texts, tokens]; padding may lie on either side. With
            ``pixel_values`` where pictures stand in the prompts.
        most: new tokens of each.

    Raises:
        ValueError: the prompts have more or fewer placeholders than there are pictures.
    """
    room = model.limits.room(tokenizer.longest)
    rows = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    prompts = [tuple(ids[mask != 0].tolist()) for ids, mask in rows]
    pictures = _pictures(prompts, tokenizer, inputs) if "pixel_values" in inputs else repeat(())
    works = [Generate(ids, most, pictures=found).within(room) for ids, found in zip(prompts, pictures, strict=False)]
    waiting = [BlockingQuery(work, cached=True) for work in works]
    bounds = Bounds(uniform_length=model.limits.uniform_room(tokenizer.longest), cache=model.cache)
    for queries in batches(waiting, bounds):
        run = GenerationRun(model, tokenizer, queries)
        while not all(query.over for query in queries):
            run.step(math.inf)
    return [query.outcome.text for query in waiting if isinstance(query.outcome, Generated)]


def _pictures(prompts: Sequence[Sequence[int]], tokenizer: Tokenizer, inputs: Inputs) -> list[tuple[Picture, ...]]:
    """The pictures of each prompt, of pixels in the order of their places."""
    assert tokenizer.pictures is not None
    form = tokenizer.pictures.pictures
    shown = list(_shown(inputs, form))
    places, left, found = [prompt.count(form.token_id) for prompt in prompts], iter(shown), []
    for count in places:
        own = list[Picture]()
        while sum(picture.tokens for picture in own) < count and (following := next(left, None)) is not None:
            own.append(following)
        found.append(tuple(own))
    if [sum(picture.tokens for picture in own) for own in found] != places or next(left, None) is not None:
        each = f"{len(shown)} pictures of {' or '.join(map(str, sorted({picture.tokens for picture in shown})))}"
        raise ValueError(f"expected prompts with {each} placeholders each, found {places} placeholders")
    return found


def _shown(inputs: Inputs, form: Pictures) -> Iterator[Picture]:
    """Pictures of which only the pixels are known; their keys are no keys of decoded ones."""
    pixels, grids = picture_parts(inputs, form)
    if form.packed is not None:
        at = 0
        for height, width in inputs["image_sizes"].tolist():
            size, start = (height, width), at
            at += tile_count(size, form.packed)
            yield _of_pixels(pixels[start:at], len(order(size, form.packed)), size=size)
        return
    for part, grid in parts_of(pixels, grids):
        yield _of_pixels(part[0], form.places) if grid is None else _of_pixels(part, math.prod(grid), grid)


def _of_pixels(pixels: Floats, tokens: int, grid: Grid | None = None, size: Size | None = None) -> Picture:
    key = blake3(pixels.tobytes() + str(size or "").encode(), derive_key_context="weightpager pixels of a picture")
    return Picture(key.digest(), lambda: pixels, tokens, grid, size=size)
