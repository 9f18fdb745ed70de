"""Generation with a torch module that goes on where it stopped: its cache, its limits, its state."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from weightpager.answers.model import Activations, ModelLimits
from weightpager.backends.torch.architecture import context_length, empty_module, quiet_transformers, uniform_length
from weightpager.bundle import Bundle

_KINDS = (DynamicLayer, DynamicSlidingWindowLayer)
_STRETCHED = frozenset({"longrope", "dynamic"})
"""Ways to embed positions by which the length of all that is read decides how its beginning is."""

_NAMES = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
CACHE = "cache" if "cache" in _NAMES else "past_key_values"
"""What this release of transformers calls it, in arguments and in outputs."""


def new_cache(config: Any) -> DynamicCache | None:
    """An empty one; None for a model that keeps anything but keys and values: it can't be stopped and gone on with."""
    try:
        cache = DynamicCache(config=config.get_text_config(decoder=True))
    except Exception:  # noqa: BLE001 - whatever transformers says of layers that it has no cache for
        return None
    plain = all(type(layer) in _KINDS for layer in cache.layers)
    return cache if plain and "dynamic" not in _rope_types(config) else None


def reads_in_pieces(config: Any) -> bool:
    """Whether a text may be read a piece after the other, with the same result as at once but for rounding."""
    return new_cache(config) is not None and not _rope_types(config) & _STRETCHED


def without_cache(module: nn.Module) -> dict[str, bool]:
    """Arguments of a module's ``forward`` by which it keeps nothing of what it reads."""
    return {"use_cache": False} if "use_cache" in inspect.signature(module.forward).parameters else {}


def bytes_per_token(config: Any, itemsize: int) -> int:
    """Most bytes that a token takes in a cache: keys and values of every layer; 0 of a model without attention.

    Args:
        config: of the model.
        itemsize: bytes of a number that it computes with, whatever pages are in.
    """
    text_config = config.get_text_config()
    queries = getattr(text_config, "num_attention_heads", None)
    if not queries:
        return 0
    heads = getattr(text_config, "num_key_value_heads", None) or queries
    width = getattr(text_config, "head_dim", None) or text_config.hidden_size // queries
    return 2 * int(text_config.num_hidden_layers) * int(heads) * int(width) * itemsize


def _rope_types(config: Any) -> set[object]:
    text_config = config.get_text_config()
    rope = getattr(text_config, "rope_parameters", None) or getattr(text_config, "rope_scaling", None) or {}
    kinds = [rope, *(part for part in rope.values() if isinstance(part, dict))]  # layers may have one each
    return {kind.get("rope_type", kind.get("type")) for kind in kinds}


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


class ResumableGeneration:
    """A batch of texts, and the cache of what the model has read of them.

    Steps may lie far apart, and other texts may be read between. Long prompts are read in pieces, so that memory grows
    with a piece times a text's length, not with its square. What comes out is what one call of transformers' `generate`
    gives, but for rounding where a prompt takes several pieces.

    Attributes:
        ids: int64 [texts, tokens], shorter ones padded on the left.
        stoppable: whether `grow` may be stopped and called again.
    """

    def __init__(self, module: nn.Module, ids: Tensor, mask: Tensor) -> None:
        """Nothing has been read.

        Args:
            module: of a decoder.
            ids: the prompts, as the attribute.
            mask: int64 [texts, tokens], 0 for padding.
        """
        decoder: Any = module
        self.ids = ids
        self._mask = mask
        self._module = decoder
        self._prompt = ids.shape[1]
        self._cache: Any = new_cache(decoder.config)
        self.stoppable = self._cache is not None
        self._in_pieces = reads_in_pieces(decoder.config)
        self._activations = activations_of(decoder.config, decoder.dtype.itemsize)
        self._read = 0

    @property
    def unread(self) -> int:
        """Tokens of each prompt that `read_piece` should read before they grow; the last piece is read as they do."""
        left = self._prompt - self._read
        return max(0, left - self._piece()) if self._in_pieces and left > 0 else 0

    def read_piece(self) -> None:
        """Read one more piece; some of it is `unread`."""
        assert self.unread
        stop = self._read + self._piece()
        # By transformers' own way to read a prompt, which knows what each model needs; the token is thrown away.
        plain = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "pad_token_id": 0}
        ids, mask = self.ids[:, :stop], self._mask[:, :stop]
        with nullcontext() if mask[:, -1].all() else quiet_transformers():  # says padding is to the right
            self._generate(ids, mask, max_new_tokens=1, **plain)
        self._read = stop

    def grow(self, max_new_tokens: int, **options: Any) -> None:
        """Read what is left, and go on by so many tokens at most, as transformers' `generate` does with these options.

        Where they are stopped by a criterion, they can grow on, if they are `stoppable`.
        """
        done = self.ids.shape[1] - self._prompt
        generated = self._generate(
            self.ids, self._mask, max_new_tokens=max_new_tokens, **_further(self._module, done), **options
        )
        fresh = generated.sequences.shape[1] - self.ids.shape[1]
        self.ids = generated.sequences
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), fresh)], 1)
        self._read = self.ids.shape[1] - 1

    def keep(self, texts: Sequence[int]) -> None:
        """Let go of all but these; only if `stoppable`."""
        assert self._cache is not None
        places = torch.tensor(texts, device=self.ids.device)
        self.ids, self._mask = self.ids[places], self._mask[places]
        self._cache.batch_select_indices(places)

    def _piece(self) -> int:
        return self._activations.piece(len(self.ids), self._read, self._prompt)

    def _generate(self, ids: Tensor, mask: Tensor, **options: Any) -> Any:
        kept = {} if self._cache is None else {CACHE: self._cache, "use_cache": True, "cache_implementation": None}
        single = {"num_beams": 1, "num_return_sequences": 1, "return_dict_in_generate": True}
        generated = self._module.generate(input_ids=ids, attention_mask=mask, **single, **kept, **options)
        if self._cache is not None:
            self._cache = getattr(generated, CACHE)  # another one where the way to embed positions has changed
        return generated


def _further(module: Any, grown: int) -> dict[str, Any]:
    """Generation options that count from the prompt's end, shifted by the tokens already generated."""
    if not grown:
        return {}
    options = module.generation_config
    fewest, decay = options.min_new_tokens, options.exponential_decay_length_penalty
    return {
        "begin_suppress_tokens": None,
        "min_new_tokens": None if fewest is None else max(0, fewest - grown),
        "exponential_decay_length_penalty": None if decay is None else (decay[0] - grown, decay[1]),
    }
