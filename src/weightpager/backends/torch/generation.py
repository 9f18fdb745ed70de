"""What a torch module has read of texts, and keeps of it: its cache, its limits."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from weightpager.answers.decoding import Draw, Piece
from weightpager.answers.model import Activations, Floats, Integers, ModelLimits, PlacedFeatures, positions
from weightpager.backends.torch.architecture import context_length, has_picture_tower, uniform_length
from weightpager.backends.torch.pictures import with_features
from weightpager.bundle.format.manifest import Pictures

_KINDS = (DynamicLayer, DynamicSlidingWindowLayer)
_STRETCHED = frozenset({"longrope", "dynamic"})
"""Ways to embed positions by which the length of all that is read decides how its beginning is."""

_NAMES = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
CACHE = "cache" if "cache" in _NAMES else "past_key_values"
"""What this release of transformers calls it, in arguments and in outputs."""


def new_cache(config: Any) -> DynamicCache | None:
    """An empty one; None for a model that keeps anything but keys and values: it can't be stopped and gone on with."""
    try:
        found = DynamicCache(config=config.get_text_config(decoder=True))
    except Exception:  # noqa: BLE001 - whatever transformers says of layers that it has no cache for
        return None
    plain = all(type(layer) in _KINDS for layer in found.layers)
    return found if plain and "dynamic" not in _rope_types(config) else None


def reads_in_pieces(config: Any) -> bool:
    """Whether a text may be read a piece after the other, with the same result as at once but for rounding."""
    return new_cache(config) is not None and not _rope_types(config) & _STRETCHED


def without_cache(module: nn.Module) -> dict[str, bool]:
    """Arguments of a module's ``forward`` by which it keeps nothing of what it reads."""
    passed_on = has_picture_tower(module.config)  # to the language model
    return {"use_cache": False} if passed_on or "use_cache" in _arguments(module) else {}


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


def limits_of(module: Any, itemsize: int, pictures: Pictures | None = None) -> ModelLimits:
    """The limits of a task's module, whose values may be missing."""
    config, activations = module.config, activations_of(module.config, itemsize)
    if module.main_input_name == "pixel_values" and not has_picture_tower(config):
        return ModelLimits(0, 0, None, False, activations)
    return ModelLimits(
        vocab_size=int(module.get_input_embeddings().num_embeddings),
        context=context_length(module),
        uniform_length=uniform_length(config),
        in_pieces=reads_in_pieces(config),
        activations=activations,
        pictures=pictures,
    )


def activations_of(config: Any, itemsize: int) -> Activations:
    """What a forward takes."""
    text_config = config.get_text_config()
    width = _largest(text_config, "hidden_size") or 1024
    inner = _largest(text_config, "intermediate_size") or 4 * width
    heads = _largest(text_config, "num_attention_heads") or 16
    return Activations.of_layer(width, inner, heads, itemsize)


def _largest(config: Any, name: str) -> int:
    """A setting that may have a value for each of a model's stages; 0 if it isn't stated."""
    value = getattr(config, name, None) or 0
    return max(map(int, value), default=0) if isinstance(value, (list, tuple)) else int(value)


@dataclass(frozen=True)
class TorchPiece:
    """Implements `weightpager.answers.decoding.Piece`; keys and values are [1, heads, tokens, width], by layer."""

    tokens: int
    layers: Sequence[tuple[Tensor, Tensor]]

    @property
    def bytes(self) -> int:
        return sum(each.nbytes for pair in self.layers for each in pair)


class TorchReading:
    """Implements `weightpager.answers.decoding.Reading`, as transformers' `generate` reads and goes on.

    A model that keeps anything but keys and values makes its cache itself; one that keeps nothing reads all anew for
    each token.
    """

    exact = False  # torch's products have other bits for another number of tokens

    def __init__(self, module: Any, placed: PlacedFeatures | None = None) -> None:
        self._module, self._placed = module, placed
        self._prompts = None if placed is None else placed.positions
        self._cache: Any = new_cache(module.config)
        self.stoppable = self._cache is not None
        self.done = 0
        self._arguments, self._of_base = _arguments(module), _arguments(module.base_model)

    @torch.no_grad()
    def hidden(self, ids: Integers, mask: Integers) -> Floats:
        base = self._module.base_model
        given = {
            "input_ids": self._tensor(ids[:, self.done :]),
            "attention_mask": self._tensor(mask),
            "use_cache": True,
        }
        if "position_ids" in self._of_base:
            given["position_ids"] = self._positions(mask)[..., self.done :]
        return floats(self._forward(base, ids, given).last_hidden_state)

    @torch.no_grad()
    def next(self, ids: Integers, mask: Integers, draw: Draw | None) -> Integers:
        options: dict[str, Any] = {CACHE: self._cache, "use_cache": True, "is_first_iteration": not self.done}
        if self._cache is not None:
            options["next_sequence_length"] = ids.shape[1] - self.done
        if "position_ids" in self._arguments:
            options["position_ids"] = self._positions(mask)
        if "logits_to_keep" in self._arguments:
            options["logits_to_keep"] = 1
        if not mask.all():  # without one, attention is faster
            options["attention_mask"] = self._tensor(mask)
        given = self._module.prepare_inputs_for_generation(self._tensor(ids), **options)
        logits = self._forward(self._module, ids, given).logits[:, -1].float()
        return logits.argmax(-1).cpu().numpy() if draw is None else draw(floats(logits))

    def keep(self, texts: Sequence[int]) -> None:
        self._cache.batch_select_indices(torch.tensor(texts, device=self._module.device))
        if self._placed is not None:
            self._placed = self._placed.of_texts(texts)
        if self._prompts is not None:
            self._prompts = self._prompts[:, list(texts)]

    def piece(self, start: int, *, whole: bool) -> TorchPiece | None:  # noqa: ARG002 - one can begin anywhere
        layers = [] if self._cache is None else self._cache.layers
        if not layers or any(type(layer) is not DynamicLayer for layer in layers):
            return None  # a window has let go of its beginning
        pairs = [(each.keys[:, :, start:].clone(), each.values[:, :, start:].clone()) for each in layers]
        return TorchPiece(self.done - start, pairs)

    def take_over(self, piece: Piece, tokens: int) -> None:
        assert isinstance(piece, TorchPiece)
        assert tokens == piece.tokens
        for layer, (keys, values) in enumerate(piece.layers):
            self._cache.update(keys, values, layer)
        self.done += piece.tokens

    def _forward(self, module: Any, ids: Integers, given: dict[str, Any]) -> Any:
        """What a module makes of the last of these tokens, as many as it is given."""
        if self._placed is not None:
            given = self._with_pictures(self._placed, ids.shape[1], given)
        output = module(**{CACHE: self._cache, **given}, return_dict=True)
        self._cache = output.get(CACHE)  # another one where the way to embed positions has changed
        self.done = ids.shape[1]
        read = self._placed is not None and self._placed.index.shape[1] <= self.done
        if read and self._cache is not None:  # else all is read anew
            self._placed = None
        return output

    def _with_pictures(self, placed: PlacedFeatures, end: int, given: dict[str, Any]) -> dict[str, Any]:
        """Arguments with embeddings in the place of ids, where features stand among the tokens up to an end."""
        words = given["input_ids"]
        here = placed.between(end - words.shape[1], end)
        if here is None:
            return given
        others = {name: value for name, value in given.items() if name != "input_ids"}
        rows = torch.from_numpy(here.rows).to(words.device)
        return {**others, "inputs_embeds": with_features(self._module, words, rows, self._tensor(here.index))}

    def _positions(self, mask: Integers) -> Tensor:
        return self._tensor(positions(mask, self._prompts))

    def _tensor(self, array: Integers) -> Tensor:
        return torch.from_numpy(array).to(self._module.device)


def _arguments(module: nn.Module) -> frozenset[str]:
    return frozenset(inspect.signature(module.forward).parameters)


def floats(tensor: Tensor) -> Floats:
    found: Floats = tensor.float().cpu().numpy()
    return found
