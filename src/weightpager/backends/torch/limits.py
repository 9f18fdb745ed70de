"""What a model of transformers can read, and what that takes."""

from __future__ import annotations

from typing import Any

from weightpager.answers.generation.forward_size import Activations
from weightpager.answers.model import ModelLimits
from weightpager.backends.torch.attention_cache import bytes_per_token, reads_in_pieces
from weightpager.backends.torch.model.architecture import context_length, empty_module, even_length
from weightpager.bundle import Bundle


def limits_of(bundle: Bundle, config: Any, itemsize: int) -> ModelLimits:
    """Of a bundle's model.

    Args:
        bundle: with the model.
        config: of the model.
        itemsize: bytes of a number that it computes with, whatever pages are in.
    """
    task = next(iter(bundle.tasks.values()))
    activations = activations_of(config, itemsize)
    if task.takes_images:
        return ModelLimits(0, 0, None, False, 0, activations)
    return ModelLimits(
        vocabulary=int(config.get_text_config().vocab_size),
        context=context_length(empty_module(config, task)),
        together=even_length(config),
        in_pieces=reads_in_pieces(config),
        cache_bytes=bytes_per_token(config, itemsize),
        activations=activations,
    )


def activations_of(config: Any, itemsize: int) -> Activations:
    """What a forward takes.

    Args:
        config: of the model.
        itemsize: bytes of a number that it computes with.
    """
    own = config.get_text_config()
    width = int(getattr(own, "hidden_size", None) or 1024)
    inner = int(getattr(own, "intermediate_size", None) or 4 * width)
    heads = int(getattr(own, "num_attention_heads", None) or 16)
    # The residual, its norm, queries, keys, values and what attention gives; gate, up and their product.
    return Activations(itemsize * (8 * width + 3 * inner), itemsize * heads)
