"""`Tokenizer`: a bundle's tokenizer, over the tokenizers library."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers.models import WordLevel

from weightpager.bundle import Bundle
from weightpager.bundle.format.manifest import Pictures
from weightpager.bundle.format.names import MODEL
from weightpager.bundle.model_files import model_dir
from weightpager.bundle.settings import CONFIG, IMAGES, TOKENIZER, TOKENIZER_FILE
from weightpager.errors import BundleFormatError, ImageError
from weightpager.interrupts import uninterrupted
from weightpager.machine.panics import panics_as_errors
from weightpager.readers.picture_reader import PictureReader, check_tower, processor_settings
from weightpager.readers.token_bytes import TokenBytes

_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
"""Of a tokenizer of the library, beside the model."""

_TEMPLATE = "chat_template.jinja"
_MORE_TEMPLATES = "additional_chat_templates"

NO_DEFAULT = "{{ raise_exception('the model has several templates, no default one') }}"
"""Refuses every conversation: nobody says which of several templates a task would be asked with."""

_TEXT = tokenizers.Tokenizer(WordLevel({"a": 0}, unk_token="a")).encode("a")  # noqa: S106 - a word
"""A text of one token, whatever words a tokenizer knows."""

ANY_LENGTH = 2**40
"""Tokens. Some tokenizers say that they read any length; a larger number means that."""


@dataclass(frozen=True)
class Encoded:
    """A text's tokens.

    Attributes:
        ids: of the tokens.
        spans: of each token the characters [begin, end) that it stands for; (0, 0) of a special one.
        cut: number of tokens of the text that aren't among these, since it was cut.
    """

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    cut: int

    @classmethod
    def of(cls, encoding: tokenizers.Encoding) -> Encoded:
        """The same, as the library has it."""
        left_out = sum(part.special_tokens_mask.count(0) for part in encoding.overflowing)
        return cls(tuple(encoding.ids), tuple(encoding.offsets), left_out)


class Tokenizer:
    """A tokenizer that gives the ids that transformers' tokenizer of the same files gives. For one thread at a time.

    What reads or writes text raises a `RuntimeError` where the library panics.

    Attributes:
        begin_ids: the tokens that it puts in front of a text.
        longest: tokens that it says the model can read; `ANY_LENGTH` if it doesn't say.
        special: texts of special tokens by their name, such as ``eos_token``.
        chat_template: the only one, or that named ``default``; None if there is none.
        pictures: what reads pictures among the words; None if the model reads none.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        settings: Mapping[str, Any],
        chat_template: str | None,
        pictures: PictureReader | None = None,
    ) -> None:
        """``settings`` are those of ``tokenizer_config.json``.

        Raises:
            ValueError: there are ``pictures``, and the tokenizer doesn't read their placeholder as one token.
        """
        self._inner = inner
        inner.no_padding()
        inner.no_truncation()
        inner.encode_special_tokens = bool(settings.get("split_special_tokens", False))
        self._settings = settings
        self._cut: int | None = None
        self._side = settings.get("truncation_side") or "right"
        self.special = {name: text for name, value in settings.items() if (text := _special(name, value)) is not None}
        self.begin_ids = begin_ids(inner)
        self.longest = min(int(settings.get("model_max_length") or ANY_LENGTH), ANY_LENGTH)
        self.chat_template = chat_template
        self.pictures = None
        if pictures is not None:
            self._check_placeholder(pictures.pictures)
            self.pictures = pictures.worded(lambda text: self.encode(text, special=False).ids)

    @property
    def pad_id(self) -> int | None:
        """The token to fill batches with; None if none is named."""
        return self._named("pad_token")

    @property
    def end_id(self) -> int | None:
        """The token that ends a text; None if none is named."""
        return self._named("eos_token")

    def copy(self) -> Tokenizer:
        """Another one, for another thread. They share the vocabulary, which takes megabytes and never changes."""
        return self.with_pictures(self.pictures)

    def with_pictures(self, pictures: PictureReader | None) -> Tokenizer:
        """A `copy` with another reader of pictures. Errors are those of the constructor."""
        return Tokenizer(_sharing(self._inner), self._settings, self.chat_template, pictures)

    def __call__(
        self, texts: str | Sequence[str], *, max_length: int | None = None
    ) -> dict[str, npt.NDArray[np.int64]]:
        """What a `NativeTask` takes: ``input_ids`` and ``attention_mask``, [texts, longest].

        Special tokens are those that the model expects around a text. Shorter texts are filled on the right with 0,
        which the mask leaves out.

        Args:
            texts: one or more.
            max_length: tokens to cut each to, special ones included; None to keep all.
        """
        encoded = self.encode_all([texts] if isinstance(texts, str) else texts, most=max_length)
        lengths = np.array([len(each.ids) for each in encoded], np.int64)
        mask = np.arange(lengths.max(initial=0)) < lengths[:, None]
        ids = np.zeros(mask.shape, np.int64)
        ids[mask] = [number for each in encoded for number in each.ids]
        return {"input_ids": ids, "attention_mask": mask.astype(np.int64)}

    def encode(self, text: str, *, most: int | None = None, special: bool = True) -> Encoded:
        """A text's tokens.

        Args:
            text: any.
            most: tokens to cut it to, special ones included; None to keep all.
            special: whether those are added that the model expects around a text.
        """
        if most != self._cut:
            self._set_cut(most)
        with panics_as_errors():
            encoding = self._inner.encode(text, add_special_tokens=special)
        return Encoded.of(encoding)

    def encode_all(self, texts: Sequence[str], *, most: int | None = None, special: bool = True) -> list[Encoded]:
        """The tokens of each text, found on several cores; otherwise as `encode`."""
        if most != self._cut:
            self._set_cut(most)
        with panics_as_errors():
            encoded = self._inner.encode_batch(list(texts), add_special_tokens=special)
        return [Encoded.of(found) for found in encoded]

    def prompt(self, text: str, *, bos: bool, chat: bool = False, pictures: int = 0) -> tuple[int, ...]:
        """The tokens of a text that is to be continued; none of an empty one.

        What the tokenizer puts behind a text is left out: it would end it.

        Args:
            text: any. It has a placeholder for each picture, or none: then they stand in front of it, unless it is a
                conversation. Each becomes as many tokens as its picture takes places.
            bos: whether it begins with `begin_ids`.
            chat: whether it is a conversation in the chat template, if there is one: a template writes these itself.
            pictures: that stand in the text; as many as `PictureReader.check_number` lets through.

        Raises:
            ImageError: the text has another number of placeholders, or the model reads no pictures.
        """
        if pictures and self.pictures is None:
            raise ImageError(f"expected texts alone, as the model reads, found {pictures} pictures")
        if pictures and self.pictures is not None and not chat and self.pictures.pictures.token not in text:
            text = self.pictures.placeholders(pictures) + text
        ids = self.encode(text, special=False).ids
        if self.pictures is not None:
            ids = self.pictures.expanded(ids, pictures)
        begins = ids and bos and not (chat and self.chat_template is not None)
        return (*self.begin_ids, *ids) if begins else ids

    @cached_property
    def bytes(self) -> TokenBytes:
        """What its tokens stand for."""
        return TokenBytes(self._inner)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens; special ones are left out."""
        with panics_as_errors():
            return self._inner.decode(ids, skip_special_tokens=True)

    def _check_placeholder(self, pictures: Pictures) -> None:
        """A tokenizer may be told to read special tokens as other text (``split_special_tokens``)."""
        read = self.encode(f"a{pictures.token}a", special=False).ids
        if read.count(pictures.token_id) != 1 or self.decode([pictures.token_id]):
            expected = f"expected a tokenizer that reads {pictures.token!r} as a special token, {pictures.token_id}"
            raise ValueError(f"{expected}, found {self.encode(pictures.token, special=False).ids}")

    def _set_cut(self, most: int | None) -> None:
        if most is None:
            self._inner.no_truncation()
        else:
            self._inner.enable_truncation(most, direction=self._side)
        self._cut = most

    def _named(self, name: str) -> int | None:
        text = self.special.get(name)
        return None if text is None else self._inner.token_to_id(text)


def begin_ids(inner: tokenizers.Tokenizer) -> tuple[int, ...]:
    """The tokens that a tokenizer of the library puts in front of a text, such as Llama's that begins one (BOS)."""
    if inner.post_processor is None:
        return ()
    with panics_as_errors():
        around = inner.post_processor.process(_TEXT)
    return tuple(around.ids[: around.special_tokens_mask.index(0)]) if 0 in around.special_tokens_mask else ()


def open_tokenizer(bundle: Bundle) -> Tokenizer:
    """The tokenizer of a bundle, from its own files only. Raises `BundleFormatError` of images or damaged files."""
    if bundle.takes_images:
        raise BundleFormatError(f"{MODEL}/", "tokenizer", "one", "none: the tasks read images")
    folder = model_dir(bundle)
    tokenizer = read_tokenizer(folder)
    if bundle.pictures is None:
        return tokenizer
    file = IMAGES
    try:
        found = processor_settings(folder)
        if found is None:
            raise ValueError("expected the settings of an image processor, found none")
        file, settings = found
        pictures = PictureReader.of(settings, bundle.pictures)
        check_tower(pictures, json.loads((folder / CONFIG).read_bytes()))
        return tokenizer.with_pictures(pictures)
    except (TypeError, ValueError) as error:  # a configuration may say anything of sizes
        raise BundleFormatError(f"{MODEL}/{file}", "content", "what reads the tasks' pictures", error) from error


@uninterrupted
def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a folder whose files have been checked. Raises `BundleFormatError` without one that works."""
    name = f"{MODEL}/{TOKENIZER_FILE}"
    if not (folder / TOKENIZER_FILE).is_file():
        raise BundleFormatError(name, "file", "the tokenizer of a bundle whose tasks read texts", "none")
    settings = _settings(folder)
    try:
        with panics_as_errors():
            tokenizer = Tokenizer(
                tokenizers.Tokenizer.from_file(str(folder / TOKENIZER_FILE)), settings, _template(folder, settings)
            )
            tokenizer.decode(tokenizer.encode("a").ids)  # some of what is wrong with one shows only when it is used
    except Exception as error:
        raise BundleFormatError(name, "content", "a tokenizer that the tokenizers library can read", error) from error
    return tokenizer


def _sharing(inner: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A tokenizer over the same model and other parts, with padding, truncation and flags of its own."""
    tokenizer = tokenizers.Tokenizer(inner.model)
    for part in _PARTS:
        if (value := getattr(inner, part)) is not None:
            setattr(tokenizer, part, value)
    added = inner.get_added_tokens_decoder()
    tokenizer.add_tokens([token for _, token in sorted(added.items())])
    # Tokens that the model doesn't know get numbers in turn; where those were others, all is copied.
    return tokenizer if tokenizer.get_added_tokens_decoder() == added else tokenizers.Tokenizer.from_str(inner.to_str())


def _settings(folder: Path) -> Mapping[str, Any]:
    file = folder / TOKENIZER
    settings: Mapping[str, Any] = json.loads(file.read_bytes()) if file.is_file() else {}
    return settings


def _special(name: str, value: Any) -> str | None:
    """A special token's text; None if a setting names none."""
    if not name.endswith("_token"):
        return None
    if isinstance(value, dict):  # as older versions of transformers write tokens
        value = value.get("content")
    return value if isinstance(value, str) else None


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The chat template, where transformers of any version wrote it."""
    if (folder / _TEMPLATE).is_file():
        return (folder / _TEMPLATE).read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # of several, each with its name
        template = {str(each.get("name")): each.get("template") for each in template if isinstance(each, dict)}
    if isinstance(template, dict):
        template = template.get("default", NO_DEFAULT)
    elif template is None and (folder / _MORE_TEMPLATES).is_dir():
        template = NO_DEFAULT
    return template if isinstance(template, str) and template else None
