"""Answers that keep to a JSON schema: which tokens may come next."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from weightpager.errors import ConfigError, RequestError
from weightpager.machine.packages import check_installed
from weightpager.machine.panics import panics_as_errors
from weightpager.readers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

_FIELD = "response_format"
_MOST_CHARACTERS, _MOST_DEPTH, _MOST_NUMBER = 2**15, 32, 2**53
"""Of a schema: its length as JSON, values inside each other, and its largest number, up to which all are exact."""

_BLANKS = r"( |\n( {0,24}|\t{0,6}))"
"""Between two signs of JSON, at most: a model that likes blanks best would write nothing else."""

_MOST_SYMBOLS, _MOST_STATES = 10**5, 10**4
"""Of a grammar, and of the automaton that reads its words, in which a state takes about a kilobyte. The library's own
limits bound the work that a token takes."""

Allowed = npt.NDArray[np.bool_]


class Grammars:
    """Compiles schemas for one vocabulary, which takes 12 MiB and a third of a second to read. For one thread."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """``tokenizer`` is nobody else's; the model's token ids are below ``vocab_size``.

        Raises:
            RequestError: llguidance isn't installed, or the tokenizer doesn't write texts byte by byte.
        """
        try:
            check_installed("llguidance", "schema", f"to serve a {_FIELD}")
        except ConfigError as error:
            raise RequestError(str(error), _FIELD) from error
        if not tokenizer.bytes.exact:
            expected = "expected a model whose tokenizer has a token for each byte, to keep to a schema"
            raise RequestError(f"{expected}, found another tokenizer", _FIELD)
        import llguidance

        self._library = llguidance
        self._limits = llguidance.LLParserLimits(
            max_grammar_size=_MOST_SYMBOLS, max_lexer_states=_MOST_STATES, verbose_errors=False
        )
        words = llguidance.TokenizerWrapper(_Words(tokenizer, vocab_size))
        self._words = llguidance.LLTokenizer(words, n_vocab=vocab_size + 1, eos_token=vocab_size)
        self._vocab_size = vocab_size

    def compiled(self, schema: object) -> Grammar:
        """What a schema allows.

        Args:
            schema: of JSON, parsed.

        Raises:
            RequestError: it is too large, no schema, has keywords that can't be enforced, or allows nothing.
        """
        _check(schema)
        text = json.dumps(schema)
        if len(text) > _MOST_CHARACTERS:
            raise _refusal(f"a schema of at most {_MOST_CHARACTERS} characters", str(len(text)))
        matchers = self._library.LLMatcher
        try:
            with panics_as_errors():
                grammar = matchers.grammar_from_json_schema(text, overrides={"whitespace_pattern": _BLANKS})
                matcher = matchers(self._words, grammar, log_level=0, limits=self._limits)
                begun = matcher.deep_copy()
                begun.compute_bitmask()  # some of what is wrong shows only now
        except (ValueError, RuntimeError) as error:
            raise _refusal("a JSON schema", str(error)) from error
        if begun.is_error():
            raise _refusal("a JSON schema that can be enforced", begun.get_error())
        if begun.is_stopped():
            raise _refusal("a JSON schema", "one that allows nothing")
        return Grammar(matcher, self._vocab_size)


class Grammar:
    """A compiled schema, which nobody changes."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size

    def begin(self, ends: Collection[int]) -> Guide:
        """Nothing of an answer has been written; ``ends`` are the tokens that end it."""
        return Guide(self._matcher.deep_copy(), self._vocab_size, sorted(ends))


class Guide:
    """What one answer may go on with."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, ends: list[int]) -> None:
        """Arguments are those of `Grammar.begin`; the matcher is this answer's own."""
        self._matcher, self._vocab_size, self._ends = matcher, vocab_size, ends

    @property
    def complete(self) -> bool:
        """Whether the answer is whole and nothing can follow."""
        return bool(self._matcher.is_stopped() and not self._matcher.is_error())

    def allowed(self) -> Allowed:
        """Which tokens may come next, [words]; those that end the answer, where it is whole.

        Raises:
            RequestError: it takes too long to say, or the vocabulary can't write what the schema asks for.
        """
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed: Allowed = np.unpackbits(mask, count=self._vocab_size, bitorder="little").view(np.bool_)
        if not self._matcher.is_error():
            allowed[self._ends] = self._matcher.is_accepting()
            if allowed.any():
                return allowed
        raise _refusal("a schema that the model's words can keep to", self._matcher.get_error() or "none that may come")

    def take(self, token: int) -> None:
        """Go on behind a token that is allowed and ends nothing."""
        self._matcher.consume_token(token)


class _Words:
    """A vocabulary as the library takes it, with an end of its own behind the model's tokens."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer, words = tokenizer, tokenizer.bytes
        self.eos_token_id, self.bos_token_id = vocab_size, None
        self.tokens = [*map(words.of, range(vocab_size)), b""]
        self.special_token_ids = [*(number for number in words.special if number < vocab_size), vocab_size]

    def __call__(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, special=False).ids)


def _check(value: object, depth: int = 0) -> None:
    """Refuse what the library would get wrong, or would take as a switch of its own."""
    if depth > _MOST_DEPTH:
        raise _refusal(f"a schema of at most {_MOST_DEPTH} values inside each other", "more")
    if isinstance(value, (int, float)) and not abs(value) <= _MOST_NUMBER:
        raise _refusal(f"numbers of a schema up to {_MOST_NUMBER}", "a larger one")
    if isinstance(value, dict) and "x-guidance" in value:
        raise _refusal("a JSON schema", "'x-guidance' in it")
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check(each, depth + 1)


def _refusal(expected: str, found: str) -> RequestError:
    first, _, _ = found.partition("\n")
    return RequestError(f"expected {expected}, found {first[:300]}", _FIELD)
