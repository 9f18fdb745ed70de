"""Batches that need one forward: classes, tags and vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weightpager.server.padded import pad_id, padded
from weightpager.server.work import Classified, Embed, Embedded, Look, Outcome, Tag, Tagged, Work


def encode(module: nn.Module, tokenizer: Any, works: Sequence[Work]) -> Sequence[Outcome]:
    """The outcomes of works that are of one kind, none of them a `Generate`."""
    images = [work.pixels for work in works if isinstance(work, Look)]
    if images:
        return _classify(module, {"pixel_values": torch.stack(images).to(_device(module))})
    batch = padded(module, [work.ids for work in works], pad_id(module, tokenizer), left=False)
    tags = [work for work in works if isinstance(work, Tag)]
    if tags:
        return _tag(module, batch, tags)
    return _embed(module, batch) if isinstance(works[0], Embed) else _classify(module, batch)


def _classify(module: nn.Module, batch: dict[str, Tensor]) -> list[Classified]:
    """Probabilities of the task's classes."""
    logits = module(**batch).logits  # [texts or images, classes]
    return [Classified(tuple(row)) for row in logits.float().softmax(-1).tolist()]


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _tag(module: nn.Module, batch: dict[str, Tensor], texts: Sequence[Tag]) -> list[Tagged]:
    """A tag for every word, from its first token. Words that were cut off have none."""
    logits = module(**batch).logits  # [texts, tokens, classes]
    best, choice = logits.float().softmax(-1).max(-1)
    return [_tagged(text, best[row], choice[row]) for row, text in enumerate(texts)]


def _tagged(text: Tag, best: Tensor, choice: Tensor) -> Tagged:
    first = [(word, place) for place, word in enumerate(text.starts) if word is not None]
    return Tagged(tuple((text.words[word], int(choice[place]), float(best[place])) for word, place in first))


def _embed(module: nn.Module, batch: dict[str, Tensor]) -> list[Embedded]:
    """The mean over a text's tokens of the last hidden state below the task's head."""
    base: Any = module.base_model
    hidden = base(**batch).last_hidden_state.float()  # [texts, tokens, hidden]
    mask = batch["attention_mask"][..., None]
    means = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
    return [Embedded(tuple(row)) for row in means.tolist()]
