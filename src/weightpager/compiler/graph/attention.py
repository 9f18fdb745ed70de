"""Attention as one operator: what transformers' modules call while they are traced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from weightpager.errors import NotExportableError

NAME = "weightpager"
"""The name by which transformers knows the implementation."""

_IGNORED = frozenset({
    "cache_position", "deterministic", "encoder_hidden_states", "head_mask", "max_length_k", "max_length_q",
    "output_attentions", "output_hidden_states", "past_key_values", "position_ids", "return_dict", "use_cache",
})  # fmt: skip
"""Arguments that modules pass along and that change nothing here; others must be None."""


@torch.library.custom_op("weightpager::attention", mutates_args=())
def traced_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    causal: bool,
    window: int,
    softcap: float,
) -> Tensor:
    """What a trace has in an attention's place; it computes nothing."""
    return query.new_zeros((*query.shape[:-1], value.shape[-1]))


@traced_attention.register_fake
def _(query: Tensor, _key: Tensor, value: Tensor, *_settings: object) -> Tensor:
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


@torch.library.custom_op("weightpager::local_mask", mutates_args=())
def traced_local_mask(mask: Tensor, size: int) -> Tensor:
    """What a trace has in place of a mask that hides distant tokens, too; the padded ones are all that it has."""
    return mask.clone()


@traced_local_mask.register_fake
def _(mask: Tensor, _size: int) -> Tensor:
    return torch.empty_like(mask)


def _forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Transformers' signature of an attention: heads before tokens in, behind them out."""
    given = (name for name, value in others.items() if value is not None and value is not False)
    unknown = sorted(name for name in given if name not in _IGNORED)
    if unknown:
        raise NotExportableError(f"attention with {', '.join(unknown)}")
    if attention_mask is not None and attention_mask.ndim != 2:
        raise NotExportableError("attention with a mask, or a bias, of its own for each pair of tokens")
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    attended = traced_attention(
        query, key, value, attention_mask, scale, causal, sliding_window or 0, float(softcap or 0.0)
    )
    return attended.transpose(1, 2), None


def _mask(*_: Any, attention_mask: Tensor | None = None, local_size: int | None = None, **__: Any) -> Tensor | None:
    """The mask of padded tokens as it is: which tokens see which follows from the attention's own settings.

    One that hides distant tokens is marked, so that an attention that doesn't state so is found.
    """
    if attention_mask is None or local_size is None:
        return attention_mask
    marked: Tensor = traced_local_mask(attention_mask, local_size)
    return marked


@contextmanager
def traced(module: PreTrainedModel) -> Iterator[None]:
    """Have a module's attentions traced as one operator each.

    Raises:
        NotExportableError: the architecture computes attention in its own way.
    """
    AttentionInterface.register(NAME, _forward)
    AttentionMaskInterface.register(NAME, _mask)
    before = module.config._attn_implementation
    try:
        if not module._can_set_attn_implementation():
            raise NotExportableError(f"the attention of {type(module).__name__}, which is its own")
        module.set_attn_implementation(NAME)
        yield
    finally:
        module.set_attn_implementation(before)
