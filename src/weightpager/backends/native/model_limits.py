"""What a bundle's model can read, and what that takes, by its configuration's own words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weightpager.answers.model import Activations, ModelLimits
from weightpager.bundle import Bundle
from weightpager.bundle.format.manifest import Pictures
from weightpager.bundle.format.names import MODEL
from weightpager.bundle.settings import CONFIG, GENERATION, check_settings, generation_settings, parse

_NAMES = {
    "vocab_size": ("vocab_size",),
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim"),
    "intermediate_size": ("intermediate_size", "ffn_dim", "n_inner", "hidden_dim"),
    "max_position_embeddings": ("max_position_embeddings", "n_positions", "max_sequence_length"),
}
"""The names of each setting in different architectures' configurations."""

_BEHIND_PADDING = frozenset(
    {"camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "markuplm", "mpnet", "roberta"}
    | {"roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"}
)
"""Architectures whose table of positions begins behind that of the padding, and counts the rows before."""

_PADDING = 1
"""Their padding token, where a configuration states none."""

_NUMBERED_BY_MASK = frozenset({"opt"})
"""Architectures that number a text's tokens by its mask where no positions are stated. Others count padding, too."""

_MOST_TOKENS = 2**20
_FLOAT = 4


class ModelConfig:
    """The numbers of a checked ``config.json``; of a model with a picture tower, those of its language model."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    @classmethod
    def read(cls, bundle: Bundle) -> ModelConfig:
        """Read the configuration of a bundle's model. Raises `BundleFormatError` if it is damaged, or not allowed."""
        name = f"{MODEL}/{CONFIG}"
        values = parse(name, bundle.read(name))
        check_settings(name, values)
        part = values.get("text_config") if bundle.pictures is not None else None
        stated = {key: value for key, value in part.items() if value is not None} if isinstance(part, dict) else {}
        return cls({**values, **stated})

    def number(self, name: str) -> int | None:
        """One of `_NAMES`; None if it isn't stated."""
        stated = (self._values.get(each) for each in _NAMES[name])
        return next((int(value) for value in stated if isinstance(value, int) and value > 0), None)

    @property
    def architecture(self) -> str:
        """Its name as transformers knows it, such as "bert"; empty if it isn't stated."""
        return str(self._values.get("model_type", ""))

    @property
    def context(self) -> int:
        """Tokens that the model can read, as far as it says."""
        tokens = min(self.number("max_position_embeddings") or _MOST_TOKENS, _MOST_TOKENS)
        if self.architecture not in _BEHIND_PADDING:
            return tokens
        if self._values.get("position_embedding_type") == "rotary" and self.architecture == "esm":  # without a table
            return tokens
        padding = None if self.architecture == "mpnet" else self._values.get("pad_token_id")  # MPNet's is always 1
        return max(1, tokens - (padding if isinstance(padding, int) else _PADDING) - 1)

    @property
    def numbers_by_mask(self) -> bool:
        """Whether the model's positions, where a call states none, leave out what its mask hides."""
        return self.architecture in _NUMBERED_BY_MASK

    @property
    def narrow(self) -> bool:
        """Whether the model was made in 16 bits: then keys and values of earlier tokens are kept in float16."""
        return self._values.get("dtype", self._values.get("torch_dtype")) in ("bfloat16", "float16")

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end a text, where no ``generation_config.json`` says it."""
        return _numbers(self._values.get("eos_token_id"))

    def limits(self, takes_images: bool, pictures: Pictures | None = None) -> ModelLimits:
        """What the model can read, and what that takes in float32; ``pictures`` are those among its words."""
        width = self.number("hidden_size") or 1024
        inner = self.number("intermediate_size") or 4 * width
        activations = Activations.of_layer(width, inner, heads=0, itemsize=_FLOAT)  # attention keeps no scores whole
        if takes_images:
            return ModelLimits(0, 0, None, False, activations)
        return ModelLimits(
            vocab_size=self.number("vocab_size") or 0,
            context=self.context,
            uniform_length=None,
            in_pieces=True,
            activations=activations,
            pictures=pictures,
        )


def end_tokens(bundle: Bundle, config: ModelConfig) -> frozenset[int]:
    """Tokens that end a text, by the bundle's files. Raises `BundleFormatError` of settings that aren't allowed."""
    name = f"{MODEL}/{GENERATION}"
    if name not in bundle.manifest.files:
        return config.eos_token_ids
    return _numbers(generation_settings(name, parse(name, bundle.read(name))).eos_token_id)


def _numbers(value: Any) -> frozenset[int]:
    return frozenset(each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int))
