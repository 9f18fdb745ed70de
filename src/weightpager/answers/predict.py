"""Plain texts or image files in, a task's answers out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightpager.answers.generation.attention_cache import without_cache
from weightpager.answers.generation.continued_text import decoder_after
from weightpager.answers.generation.growing_texts import GrowingTexts
from weightpager.answers.word_pieces import word_starts
from weightpager.bundle import TaskEntry
from weightpager.bundle.format.names import MODEL
from weightpager.engine.model.architecture import context_length
from weightpager.engine.model.image_reader import ImageReader
from weightpager.errors import BundleFormatError, ConfigError, ImageError


@dataclass(frozen=True)
class Prediction:
    """The answer for one text or image.

    Attributes:
        text: the input, or the image's path.
        label: the likeliest class, the tagged words joined by spaces, or the generated continuation.
        score: probability of the class; None where there is no single one.
        tags: (word, tag) pairs of a token task.
    """

    text: str
    label: str
    score: float | None = None
    tags: tuple[tuple[str, str], ...] = ()


def predict(
    module: nn.Module, reader: Any, task: TaskEntry, inputs: Sequence[str], *, max_new_tokens: int = 32
) -> list[Prediction]:
    """Run a task's module on inputs, one at a time: a batch's padding would change the last bits of a result.

    Args:
        module: the task's.
        reader: the bundle's tokenizer, or for images its `ImageReader`.
        task: whose answers are wanted.
        inputs: texts, or paths of images.
        max_new_tokens: of a continuation.

    Raises:
        ConfigError: a text has no tokens, or with its continuation more than the model can read.
        BundleFormatError: the tokenizer knows words that the model doesn't.
        ImageError: a path leads to no image that can be used; it is named.
    """
    one: Callable[[nn.Module, Any, TaskEntry, str], Prediction] = {
        "text-classification": _classify,
        "token-classification": _tag,
        "language-modeling": lambda *args: _continue(*args, max_new_tokens=max_new_tokens),
        "image-classification": _look,
    }[task.kind]
    with torch.inference_mode():
        return [one(module, reader, task, text) for text in inputs]


def _encode(module: nn.Module, tokenizer: Any, text: str, **options: Any) -> Any:
    # Ids and their mask, as tasks are trained, measured and served: many models take no token types, which tokenizers
    # give unless they are told so.
    encoded = tokenizer(text, return_tensors="pt", return_token_type_ids=False, **options)
    words = module.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if not encoded["input_ids"].numel():
        raise ConfigError(f"expected a text with at least one token, found {text!r}")
    if int(encoded["input_ids"].amax()) >= words:
        raise BundleFormatError(f"{MODEL}/", "tokenizer", f"ids below {words}, as the model has", "larger ones")
    return encoded.to(module.device)


def _classify(module: nn.Module, tokenizer: Any, task: TaskEntry, text: str) -> Prediction:
    encoded = _encode(module, tokenizer, text, truncation=True, max_length=task.max_length)
    return _likeliest(module(**encoded, **without_cache(module)).logits[0], task, text)


def _look(module: nn.Module, reader: ImageReader, task: TaskEntry, path: str) -> Prediction:
    try:
        pixels = reader.read(Path(path))
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    device: Any = module.device
    return _likeliest(module(pixel_values=pixels[None].to(device)).logits[0], task, path)


def _likeliest(logits: Tensor, task: TaskEntry, text: str) -> Prediction:
    probabilities = logits.float().softmax(-1)  # [classes]
    best = int(probabilities.argmax())
    return Prediction(text, task.classes[best], float(probabilities[best]))


def _tag(module: nn.Module, tokenizer: Any, task: TaskEntry, text: str) -> Prediction:
    words = text.split()
    options = {"truncation": True, "max_length": task.max_length, "return_offsets_mapping": True}
    encoded = _encode(module, tokenizer, " ".join(words), **options)
    spans = encoded.pop("offset_mapping")[0].tolist()
    choice = module(**encoded, **without_cache(module)).logits[0].argmax(-1).tolist()  # [tokens]
    starts = enumerate(word_starts(words, spans))
    first = {word: task.classes[choice[piece]] for piece, word in starts if word is not None}
    tags = tuple((words[number], tag) for number, tag in first.items())
    return Prediction(text, " ".join(f"{word}/{tag}" for word, tag in tags), None, tags)


def _continue(module: nn.Module, tokenizer: Any, _: TaskEntry, text: str, *, max_new_tokens: int) -> Prediction:
    # Not truncated: a continuation of anything but the prompt's end would be no continuation.
    encoded = _encode(module, tokenizer, text, add_special_tokens=False)
    room = context_length(module, tokenizer)
    found = encoded["input_ids"].shape[1]
    if found + max_new_tokens > room:
        raise ConfigError(
            f"expected at most {room} tokens, as the model can read, found {found} and {max_new_tokens} to be generated"
        )
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = encoded["input_ids"]
    texts = GrowingTexts(module, ids, torch.ones_like(ids))  # tokenizers needn't give a mask
    while texts.unread:
        texts.read_piece()
    # As the server, whose answers are the same.
    texts.grow(max_new_tokens, do_sample=False, repetition_penalty=1.0, pad_token_id=pad)
    fresh = texts.ids[0, found:].tolist()
    return Prediction(text, decoder_after(tokenizer, encoded["input_ids"][0].tolist())(fresh))
