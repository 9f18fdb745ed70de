"""What a model of transformers can read, and what that takes."""

from __future__ import annotations

from typing import Any

from weightpager.answers.generation.forward_size import Activations
from weightpager.answers.model import ModelLimits
from weightpager.backends.torch.kv_cache import reads_in_pieces
from weightpager.backends.torch.model.architecture import context_length, empty_module, uniform_length
from weightpager.bundle import Bundle


def limits_of(bundle: Bundle, config: Any, itemsize: int) -> ModelLimits:
    """The limits of a bundle's model.

    Args:
        bundle: with the model.
        config: of the model.
        itemsize: bytes of a number that it computes with, whatever pages are in.
    """
    task = next(iter(bundle.tasks.values()))
    activations = activations_of(config, itemsize)
    if task.takes_images:
        return ModelLimits(0, 0, None, False, activations)
    return ModelLimits(
        vocab_size=int(config.get_text_config().vocab_size),
        context=context_length(empty_module(config, task)),
        uniform_length=uniform_length(config),
        in_pieces=reads_in_pieces(config),
        activations=activations,
    )


def activations_of(config: Any, itemsize: int) -> Activations:
    """What a forward takes.

    Args:
        config: of the model.
        itemsize: bytes of a number that it computes with.
    """
    text_config = config.get_text_config()
    width = _largest(text_config, "hidden_size") or 1024
    inner = _largest(text_config, "intermediate_size") or 4 * width
    heads = _largest(text_config, "num_attention_heads") or 16
    return Activations.of_layer(width, inner, heads, itemsize)


def _largest(config: Any, name: str) -> int:
    """A setting that may have a value for each of a model's stages; 0 if it isn't stated."""
    value = getattr(config, name, None) or 0
    return max(map(int, value), default=0) if isinstance(value, (list, tuple)) else int(value)
