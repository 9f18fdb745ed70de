"""Text data: rows of texts or words and labels, or running text -> examples -> batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from weightpager.answers.kinds import IGNORED
from weightpager.answers.query import padded, padded_rows
from weightpager.answers.token_reader import word_starts
from weightpager.bundle.format.manifest import FORMS, TaskKind
from weightpager.errors import CompileError
from weightpager.readers.tokenizer import Encoded
from weightpager.task_data.batches import Labelled
from weightpager.task_data.row_files import READERS, label_ids, labels_of, read_rows, texts_of, words_of


@dataclass(frozen=True)
class Example:
    """One text: token ids, and its class, or one label per token (`IGNORED` where none counts).

    ``cut`` is the number of tokens that the text has beyond these.
    """

    tokens: Sequence[int]
    label: int | Sequence[int]
    cut: int = field(default=0, compare=False, kw_only=True)

    @property
    def length(self) -> int:
        return len(self.tokens)


class TextTokens(Protocol):
    """What makes tokens of texts: a bundle's `Tokenizer`, or transformers'."""

    @property
    def begin_ids(self) -> tuple[int, ...]:
        """The tokens that it puts in front of a text."""

    @property
    def end_id(self) -> int | None:
        """The token that ends a text; None if none is named."""

    def encode_all(self, texts: Sequence[str], *, most: int | None = None, special: bool = True) -> list[Encoded]:
        """Each text's tokens.

        Args:
            texts: any.
            most: tokens to cut each to, special ones included; None to keep all.
            special: whether those are added that the model expects around a text.
        """


@dataclass(frozen=True)
class TextReader:
    """Reads files of one kind of task on texts.

    Attributes:
        text, label: names of the columns.
        tokens: makes tokens of texts.
        classes: in the order of their ids; empty for language modeling.
        max_length: tokens, special ones included, at which a text is cut; the length of a language model's windows.
        bos: whether these windows begin with what the tokenizer puts in front of a text.
    """

    kind: TaskKind
    text: str
    label: str
    tokens: TextTokens
    classes: tuple[str, ...]
    max_length: int
    bos: bool = True

    def read(self, path: Path, where: str, most: int | None = None) -> tuple[Example, ...]:
        """The first ``most`` examples of a file, or all; errors speak of ``where``, and of nothing behind these.

        Raises:
            CompileError: the file is empty or malformed, a column is missing, a text isn't text, a label isn't known.
        """
        readers = {"text": self._texts, "words": self._words, "running text": self._windows}
        return tuple(readers[FORMS[self.kind].rows](path, where, most))

    def _texts(self, path: Path, where: str, most: int | None) -> list[Example]:
        texts, labels = labelled_texts(path, where, self.text, self.label, most)
        ids = label_ids(labels, self.classes, where)
        encoded = self._tokenised(texts, where)
        return [Example(list(text.ids), label, cut=text.cut) for text, (label,) in zip(encoded, ids, strict=True)]

    def _words(self, path: Path, where: str, most: int | None) -> list[Example]:
        words, labels = labelled_words(path, where, self.text, self.label, most)
        ids = label_ids(labels, self.classes, where)
        encoded = self._tokenised([" ".join(these) for these in words], where)
        examples = [
            Example(list(text.ids), first_pieces(these, tags, text.spans), cut=text.cut)
            for text, these, tags in zip(encoded, words, ids, strict=True)
        ]
        for number, (example, these) in enumerate(zip(examples, words, strict=True), 1):
            if set(cast(Sequence[int], example.label)) <= {IGNORED}:
                raise CompileError(f"{where}: row {number}: expected words, found nothing to tokenise in {these!r}")
        return examples

    def running(self, path: Path, where: str) -> Iterator[list[int]]:
        """The tokens of a file's running texts, one at a time, each but the first behind the token that ends a text.

        Errors are those of `read`.
        """
        end = [] if self.tokens.end_id is None else [self.tokens.end_id]
        begun = False
        for document in documents(path, where, self.text):
            (encoded,) = self.tokens.encode_all([document], special=False)
            yield [*(end if begun else []), *encoded.ids]
            begun = begun or bool(encoded.ids)

    @property
    def begin(self) -> list[int]:
        """What each window begins with."""
        return list(self.tokens.begin_ids) if self.bos else []

    def _windows(self, path: Path, where: str, most: int | None) -> list[Example]:
        begin, size = self.begin, self.max_length - len(self.begin)
        if size < 1:
            expected = f"max_length of more than the {len(begin)} tokens that the tokenizer puts in front of a text"
            raise CompileError(f"{where}: expected {expected}, found {self.max_length}")
        stream: list[int] = []
        for document in self.running(path, where):
            stream += document
            if most is not None and len(stream) >= most * size:
                break
        starts = range(0, len(stream) - size + 1, size)
        if not starts:
            expected = f"at least one window of {self.max_length} tokens"
            raise CompileError(f"{where}: expected {expected}, found {len(begin) + len(stream)} tokens")
        windows = [stream[start : start + size] for start in starts[:most]]
        return [Example(begin + window, [IGNORED] * len(begin) + window) for window in windows]

    def _tokenised(self, texts: list[str], where: str) -> list[Encoded]:
        encoded = self.tokens.encode_all(texts, most=self.max_length)
        for number, text in enumerate(encoded, 1):
            if not text.ids:
                raise CompileError(f"{where}: row {number}: expected a text, found nothing to tokenise")
        return encoded


def checked_labels(rows: str, path: Path, where: str, text: str, label: str, most: int | None) -> list[list[str | int]]:
    """The labels of each row, named as by `Form.rows`; none of running text. Errors are those of `TextReader.read`."""
    if rows == "running text":
        documents(path, where, text)
        return []
    return {"text": labelled_texts, "words": labelled_words}[rows](path, where, text, label, most)[1]


def labelled_texts(
    path: Path, where: str, text: str, label: str, most: int | None
) -> tuple[list[str], list[list[str | int]]]:
    """The texts of a file's rows, and their labels, a list of one each."""
    rows = read_rows(path, where, text, label, most=most)
    labels = labels_of(rows, label, where, nested=False)
    return texts_of(rows, text, where), labels


def labelled_words(
    path: Path, where: str, text: str, label: str, most: int | None
) -> tuple[list[list[str]], list[list[str | int]]]:
    rows = read_rows(path, where, text, label, most=most)
    labels = labels_of(rows, label, where, nested=True)
    words = [words_of(row[text], where, number) for number, row in enumerate(rows, 1)]
    for number, (these, tags) in enumerate(zip(words, labels, strict=True), 1):
        if len(these) != len(tags):
            counts = f"{len(these)} tokens and {len(tags)} tags"
            raise CompileError(f"{where}: row {number}: expected one tag per token, found {counts}")
    return words, labels


def documents(path: Path, where: str, text: str) -> list[str]:
    """The running texts of a file's rows, or of a file that is one text."""
    column = text if path.suffix in READERS else "text"
    return texts_of(read_rows(path, where, column, running_text=True), column, where)


def first_pieces(words: Sequence[str], tags: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[int]:
    """One label per piece: a word's tag on its first piece, `IGNORED` elsewhere; ``spans`` as in `word_starts`."""
    return [IGNORED if word is None else tags[word] for word in word_starts(words, spans)]


def collate(examples: Sequence[Example], pad: int) -> Labelled:
    """One batch, padded on the right to its longest example."""
    labels = [example.label for example in examples]
    inputs = padded([example.tokens for example in examples], pad)
    if isinstance(labels[0], int):
        return inputs, np.array(labels, np.int64)
    return inputs, padded_rows(cast(list[Sequence[int]], labels), IGNORED)
