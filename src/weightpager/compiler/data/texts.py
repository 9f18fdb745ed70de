"""Text data: rows of texts or words and labels, or running text -> examples -> batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from weightpager.answers.kinds.kind import IGNORED
from weightpager.answers.padded import padded, padded_rows
from weightpager.answers.token_reader import word_starts
from weightpager.bundle.format.manifest import FORMS, TaskKind
from weightpager.compiler.data.batch import Batch
from weightpager.compiler.data.rows import FORMATS, label_ids, labels_of, read_rows, texts_of, words_of
from weightpager.errors import CompileError


@dataclass(frozen=True)
class Example:
    """One text: token ids, and its class, or one label per token (`IGNORED` where none counts)."""

    tokens: Sequence[int]
    label: int | Sequence[int]

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.tokens)


@dataclass(frozen=True)
class TextReader:
    """Reads files of one kind of task on texts.

    Attributes:
        text, label: names of the columns.
        tokenizer: a fast one.
        classes: in the order of their ids; empty for language modeling.
        max_length: tokens, special ones included, at which a text is cut; the length of a language model's windows.
    """

    kind: TaskKind
    text: str
    label: str
    tokenizer: Any
    classes: tuple[str, ...]
    max_length: int

    def read(self, path: Path, where: str, most: int | None = None) -> tuple[Example, ...]:
        """The first ``most`` examples of a file, or all; errors speak of ``where``, and of nothing behind these.

        Raises:
            CompileError: the file is empty or malformed, a column is missing, a text isn't text, a label isn't known.
        """
        readers = {"one": self._texts, "each word": self._words, "none": self._windows}
        return tuple(readers[FORMS[self.kind].labels](path, where, most))

    def _texts(self, path: Path, where: str, most: int | None) -> list[Example]:
        rows = read_rows(path, where, self.text, self.label, most=most)
        ids = label_ids(labels_of(rows, self.label, where, nested=False), self.classes, where)
        tokens = self._tokenised(texts_of(rows, self.text, where), where)["input_ids"]
        return [Example(text, label) for text, (label,) in zip(tokens, ids, strict=True)]

    def _words(self, path: Path, where: str, most: int | None) -> list[Example]:
        rows = read_rows(path, where, self.text, self.label, most=most)
        ids = label_ids(labels_of(rows, self.label, where, nested=True), self.classes, where)
        words = [words_of(row[self.text], where, number) for number, row in enumerate(rows, 1)]
        for number, (these, tags) in enumerate(zip(words, ids, strict=True), 1):
            if len(these) != len(tags):
                counts = f"{len(these)} tokens and {len(tags)} tags"
                raise CompileError(f"{where}: row {number}: expected one tag per token, found {counts}")
        encoded = self._tokenised([" ".join(these) for these in words], where, return_offsets_mapping=True)
        examples = [
            Example(pieces, first_pieces(these, tags, spans))
            for pieces, these, tags, spans in zip(
                encoded["input_ids"], words, ids, encoded["offset_mapping"], strict=True
            )
        ]
        for number, (example, these) in enumerate(zip(examples, words, strict=True), 1):
            if set(cast(Sequence[int], example.label)) <= {IGNORED}:
                raise CompileError(f"{where}: row {number}: expected words, found nothing to tokenise in {these!r}")
        return examples

    def _windows(self, path: Path, where: str, most: int | None) -> list[Example]:
        column = self.text if path.suffix in FORMATS else "text"
        documents = texts_of(read_rows(path, where, column, whole_text=True), column, where)
        end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        stream: list[int] = []
        for document in documents:
            if most is not None and len(stream) >= most * self.max_length:
                break
            tokens = self.tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
            stream += (end if stream else []) + tokens
        starts = range(0, len(stream) - self.max_length + 1, self.max_length)
        if not starts:
            expected = f"at least one window of {self.max_length} tokens"
            raise CompileError(f"{where}: expected {expected}, found {len(stream)} tokens")
        windows = [stream[start : start + self.max_length] for start in starts[:most]]
        return [Example(window, window) for window in windows]

    def _tokenised(self, texts: list[str], where: str, **options: bool) -> Any:
        encoded = self.tokenizer(texts, truncation=True, max_length=self.max_length, **options)
        for number, tokens in enumerate(encoded["input_ids"], 1):
            if not tokens:
                raise CompileError(f"{where}: row {number}: expected a text, found nothing to tokenise")
        return encoded


def first_pieces(words: Sequence[str], tags: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[int]:
    """One label per piece: a word's tag on its first piece, `IGNORED` elsewhere; ``spans`` as in `word_starts`."""
    return [IGNORED if word is None else tags[word] for word in word_starts(words, spans)]


def collate(examples: Sequence[Example], pad: int) -> Batch:
    """One batch, padded on the right to its longest example."""
    labels = [example.label for example in examples]
    arrays = padded([example.tokens for example in examples], pad)
    inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if isinstance(labels[0], int):
        return Batch(inputs, torch.tensor(labels))
    return Batch(inputs, torch.from_numpy(padded_rows(cast(list[Sequence[int]], labels), IGNORED)))
