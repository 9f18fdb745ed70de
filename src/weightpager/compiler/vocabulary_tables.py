"""The rows of a decoder's embedding table and head."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from weightpager.errors import CompileError, shown

_PROBE = 16
"""Tokens on which a model with fewer rows has to compute what it did."""


_NAMES = re.compile(r"\w*_token_(id|ids|index)")
"""Keys of settings that name tokens by their ids."""


_OTHER_NAMES = frozenset({"vision_config", "id2label", "label2id"})
"""Objects that name no tokens: a picture tower's words, if it has any, are another vocabulary's."""


def keep_rows(model: PreTrainedModel, new: Mapping[int, int], where: str) -> None:
    """Keep these tokens' rows of the embedding table and of the head, in place and in their order.

    The decoder computes in the dtype of its weights. What it computes from the tokens stays the same, but for the
    logits of others. ``new`` has new ids by old ones; both rise.

    Raises:
        CompileError: it isn't so: the model needs the tokens' old numbers; or its settings name tokens by no numbers.
    """
    kept = torch.tensor(list(new))
    places = torch.linspace(0, len(kept) - 1, _PROBE).long()
    before = _logits(model, kept[places])[:, kept]
    _keep(model, kept)
    _renumber(model.config, new, where)
    if not torch.allclose(before, _logits(model, places), rtol=1e-3, atol=1e-3):
        raise CompileError(
            f"{where}: expected a model that knows tokens by their rows of its tables alone, found one that computes "
            "something else with fewer of them"
        )


def row_parameters(model: PreTrainedModel) -> int:
    """Parameters of one token: a row of the embedding table, and one of a head that isn't tied to it."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    width = int(table.weight.shape[1])
    return width if head.weight is table.weight else 2 * width


def named_ids(config: PretrainedConfig, where: str) -> set[int]:
    """The token ids that a configuration names, such as that of the end of a text; errors are those of `ids_in`."""
    return ids_in(config.to_dict(), where) | ids_in(config.get_text_config().to_dict(), where)


def ids_in(settings: Mapping[str, Any], where: str) -> set[int]:
    """The token ids that settings name, under any key and at any depth. Errors speak of ``where``.

    Raises:
        CompileError: something else stands under such a key.
    """
    found: set[int] = set()

    def note(number: int) -> int:
        found.add(number)
        return number

    _replaced(settings, note, where)
    return found


def renumbered(settings: Mapping[str, Any], new: Mapping[int, int], where: str) -> dict[str, Any]:
    """Settings with the token ids that they name by the new ones; what no token has stays. Errors as of `ids_in`."""
    return _replaced(settings, lambda number: new.get(number, number), where)


def _replaced(settings: Mapping[str, Any], number: Callable[[int], int], where: str, at: str = "") -> dict[str, Any]:
    """Settings with something else in place of each token id."""

    def of(value: Any, path: str, *, names: bool) -> Any:
        if isinstance(value, list):
            return [of(each, path, names=names) for each in value]
        if not names:
            return _replaced(value, number, where, f"{path}.") if isinstance(value, dict) else value
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool):
            raise CompileError(f"{where}: {path}: expected ids of tokens, found {shown(value)}")
        return number(value)

    return {
        key: value if key in _OTHER_NAMES else of(value, f"{at}{key}", names=bool(_NAMES.fullmatch(str(key))))
        for key, value in settings.items()
    }


def _renumber(config: PretrainedConfig, new: Mapping[int, int], where: str) -> None:
    text = config.get_text_config()
    for part in {id(part): part for part in (config, text)}.values():
        if part is text or hasattr(part, "vocab_size"):
            part.vocab_size = len(new)
        stated = {key: value for key, value in part.to_dict().items() if key not in part.sub_configs}
        for key, value in renumbered(stated, new, where).items():
            if value != stated[key]:
                setattr(part, key, value)


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
    """The logits after each token, float32 [tokens, vocabulary]."""
    with torch.inference_mode():
        found: Tensor = model(input_ids=tokens[None]).logits[0].float()
    return found
