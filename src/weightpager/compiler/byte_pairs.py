"""The tokens of a byte-pair tokenizer, and the same tokenizer with fewer of them."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

from weightpager.errors import CompileError

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""A byte, as tokenizers call it that fall back to bytes where they know no token."""

_SPACE = "\u2581"
"""What these have in the place of a space; its bytes would be read as this character."""


@dataclass(frozen=True)
class BytePairs:
    """A byte-pair vocabulary (Sennrich et al. 2016, arXiv 1508.07909), by what its ``tokenizer.json`` says.

    A tokenizer joins the two neighbours of a text whose merge comes first, again and again. Without merges whose
    outcome a text doesn't have, or with some of them only, it makes the same tokens of that text.
    """

    file: Mapping[str, Any]

    @classmethod
    def of(cls, tokenizer: Any, where: str) -> BytePairs:
        """The vocabulary of a fast tokenizer; errors begin with ``where``.

        Raises:
            CompileError: it doesn't join pairs, or can't spell a text whose characters it doesn't know.
        """
        byte_pairs = cls(json.loads(tokenizer.backend_tokenizer.to_str()))
        if (kind := byte_pairs._model.get("type")) != "BPE":
            raise CompileError(f"{where}: expected a tokenizer of byte pairs (BPE), found {kind}")
        if not byte_pairs._bytes:
            raise CompileError(
                f"{where}: expected a tokenizer that can spell any text by its bytes, found one that knows some "
                "characters only: with fewer tokens it could not read others"
            )
        return byte_pairs

    @property
    def _model(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.file["model"]
        return found

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Token → id, those beside the vocabulary included."""
        return {**self._model["vocab"], **{added["content"]: added["id"] for added in self.file["added_tokens"]}}

    @cached_property
    def _bytes(self) -> frozenset[str]:
        """Tokens that any text can be spelled by."""
        words: Mapping[str, int] = self._model["vocab"]
        if self._model.get("byte_fallback"):
            return frozenset(word for word in words if word == _SPACE or _BYTE.fullmatch(word))
        return frozenset(word for word in words if len(word) == 1) if _by_level(self.file) else frozenset()

    @cached_property
    def _merges(self) -> Sequence[tuple[str, str, str]]:
        """(left, right, what they become), in the file's order."""
        prefix = self._model.get("continuing_subword_prefix") or ""
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in self._model["merges"])
        return [(left, right, left + right.removeprefix(prefix)) for left, right in pairs]

    @cached_property
    def _parts(self) -> Mapping[str, Collection[str]]:
        """Token → all tokens that are joined to it."""
        found: defaultdict[str, set[str]] = defaultdict(set)
        for left, right, joined in self._merges:
            found[joined] |= {left, right}
        return found

    def closed(self, tokens: Iterable[str]) -> set[str]:
        """These tokens, and all tokens that they are joined from."""
        todo = list(tokens)
        closure = set(todo)
        while todo:
            new = set(self._parts.get(todo.pop(), ())) - closure
            closure |= new
            todo += new
        return closure

    def kept(self, seen: Mapping[int, int], always: Iterable[int], most: int | None = None) -> list[int]:
        """The ids of a smaller vocabulary, rising.

        Args:
            seen: token id → how often it occurs.
            always: ids that it has in any case, beside those of single bytes and of added tokens; others than the
                vocabulary's are passed over.
            most: how many tokens it has at most: the most frequent ones, then those that the tokenizer joins first;
                None for all that occur, and no others.

        Raises:
            CompileError: fewer are asked for than it has in any case.
        """
        names = {number: token for token, number in self.ids.items()}
        added = [token["content"] for token in self.file["added_tokens"]]
        unknown = [self._model["unk_token"]] if self._model.get("unk_token") else []
        kept = self.closed([*self._bytes, *added, *unknown, *(names[number] for number in always if number in names)])
        if most is not None and most < len(kept):
            raise CompileError(f"tokens: expected at least {len(kept)}, the bytes and special tokens, found {most}")
        wanted = [names[number] for number in sorted(seen, key=lambda number: (-seen[number], number))]
        further: Iterable[str] = () if most is None else (joined for _, _, joined in self._merges)
        for token in chain(wanted, further):
            new = self.closed([token]) - kept
            if most is None or len(kept) + len(new) <= most:
                kept |= new
        return sorted(self.ids[token] for token in kept)

    def renumbered(self, new: Mapping[int, int]) -> dict[str, Any]:
        """``tokenizer.json`` with the tokens of these ids alone, by their new ids."""
        words = {token: new[number] for token, number in self._model["vocab"].items() if number in new}
        merges = [[left, right] for left, right, joined in self._merges if {left, right, joined} <= words.keys()]
        padding = self.file.get("padding")
        return {
            **self.file,
            "model": {**self._model, "vocab": words, "merges": merges},
            "added_tokens": [{**token, "id": new[token["id"]]} for token in self.file["added_tokens"]],
            "post_processor": _around(self.file.get("post_processor"), new),
            "padding": None if padding is None else {**padding, "pad_id": new[padding["pad_id"]]},
        }


def _by_level(file: Mapping[str, Any]) -> bool:
    """Whether texts are cut into bytes before anything is joined."""
    steps = [file.get("pre_tokenizer") or {}]
    while steps:
        step = steps.pop()
        if step.get("type") == "ByteLevel":
            return True
        steps += step.get("pretokenizers", ())
    return False


def _around(step: Any, new: Mapping[int, int]) -> Any:
    """What puts tokens around a text, with their new ids."""
    if step is None:
        return None
    if "processors" in step:
        return {**step, "processors": [_around(each, new) for each in step["processors"]]}
    changed: dict[str, Any] = {key: [step[key][0], new[step[key][1]]] for key in ("sep", "cls") if key in step}
    named = step.get("special_tokens", {})
    if isinstance(named, dict) and named:
        ids = {name: {**token, "ids": [new[each] for each in token["ids"]]} for name, token in named.items()}
        changed["special_tokens"] = ids
    return {**step, **changed}
