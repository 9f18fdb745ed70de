"""The rows of a decoder's embedding table and head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from weightpager.errors import CompileError

_PROBE = 16
"""Tokens on which a model with fewer rows has to compute what it did."""


def keep_rows(model: PreTrainedModel, kept: Sequence[int], where: str) -> None:
    """Keep these tokens' rows of the embedding table and of the head, in place and in their order.

    What the model computes from them stays the same, but for the logits of other tokens.

    Args:
        model: a decoder, which computes in the dtype of its weights.
        kept: token ids, rising.
        where: what errors begin with.

    Raises:
        CompileError: it isn't so: the model needs the tokens' old numbers.
    """
    probe = torch.tensor(kept)[torch.linspace(0, len(kept) - 1, _PROBE).long()]
    before = _logits(model, probe)[:, torch.tensor(kept)]
    _keep(model, torch.tensor(kept))
    renumber(model.config, {number: place for place, number in enumerate(kept)})
    after = _logits(model, torch.searchsorted(torch.tensor(kept), probe))
    if not torch.allclose(before, after, rtol=1e-3, atol=1e-3):
        raise CompileError(
            f"{where}: expected a model that knows tokens by their rows of its tables alone, found one that computes "
            "something else with fewer of them"
        )


def row_parameters(model: PreTrainedModel) -> int:
    """Parameters of one token: a row of the embedding table, and one of a head that isn't tied to it."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    width = int(table.weight.shape[1])
    return width if head.weight is table.weight else 2 * width


def renumber(config: PretrainedConfig, new: Mapping[int, int]) -> None:
    """Give a configuration the new number of tokens and their new ids, in place."""
    text = config.get_text_config()
    text.vocab_size = len(new)
    for part in {id(part): part for part in (config, text)}.values():
        for key, value in part.to_dict().items():
            if key.endswith("_token_id") and value is not None:
                setattr(part, key, new_ids(value, new))


def new_ids(value: Any, new: Mapping[int, int]) -> Any:
    """A token id, or a list of some, by the new ids; what no token has stays."""
    return [new_ids(each, new) for each in value] if isinstance(value, list) else new.get(value, value)


def named_ids(config: PretrainedConfig) -> set[int]:
    """The token ids that a configuration names, such as that of the end of a text."""
    found: set[int] = set()
    for part in (config, config.get_text_config()):
        for key, value in part.to_dict().items():
            if key.endswith("_token_id") and value is not None:
                found |= set(value if isinstance(value, list) else [value])
    return found


def _keep(model: PreTrainedModel, kept: Tensor) -> None:
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head.weight is table.weight
    table.weight = _rows(table.weight, kept)
    table.num_embeddings = len(kept)
    if table.padding_idx is not None:
        table.padding_idx = int(torch.searchsorted(kept, table.padding_idx))
    head.weight = table.weight if tied else _rows(head.weight, kept)
    head.out_features = len(kept)
    if head.bias is not None:
        head.bias = _rows(head.bias, kept)


def _rows(values: Tensor, kept: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach()[kept].clone(), requires_grad=False)


def _logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Of each token after those before it, float32 [tokens, vocabulary]."""
    with torch.inference_mode():
        found: Tensor = model(input_ids=tokens[None]).logits[0].float()
    return found
