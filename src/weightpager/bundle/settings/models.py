"""What is known of the settings in a model's JSON files. Others are kept unless a model says otherwise."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Tokens = Annotated[int, Meta(ge=0, le=2**24)]
Positions = Annotated[int, Meta(ge=1, le=2**24)]
Word = Annotated[int, Meta(ge=0, lt=2**26)]
Side = Annotated[int, Meta(ge=1)]  # whoever loads the processor bounds those that it has, unstated ones too
Sides = dict[Literal["height", "width", "shortest_edge", "longest_edge", "max_height", "max_width"], Side | None]
Mean = Annotated[float, Meta(ge=-1e6, le=1e6)]
Deviation = Annotated[float, Meta(ge=1e-6, le=1e6)]
Positive = Annotated[float, Meta(gt=0, le=1e12)]
Factors = Annotated[list[Positive], Meta(min_length=1, max_length=2**10)]

ROPE = ("rope_scaling", "rope_parameters")
"""What configurations of transformers 4 and 5 call rotary positions: one object, or one for each type of layer."""


# Names of classes are ASCII below: a repeated \w, of all alphabets, takes 10 MiB of every process that imports it.


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Frozen; no silent conversion. Bounds keep numbers finite."""


class CommonSettings(Settings, frozen=True, kw_only=True):
    """Settings whose types a configuration class checks only if it declares them."""

    sliding_window: Tokens | None = None
    attention_chunk_size: Tokens | None = None
    original_max_position_embeddings: Tokens | None = None
    layer_types: Annotated[list[str], Meta(max_length=2**9)] | None = None
    num_kv_shared_layers: Annotated[int, Meta(ge=0, le=2**9)] | None = None
    is_decoder: bool | None = None
    use_cache: bool | None = None
    tie_word_embeddings: bool | None = None


class GenerationSettings(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``generation_config.json`` may state. Other settings would take more memory, more time or foreign code."""

    bos_token_id: Word | None = None
    eos_token_id: Word | Annotated[list[Word], Meta(min_length=1, max_length=256)] | None = None
    pad_token_id: Word | None = None
    do_sample: bool | None = None
    temperature: Annotated[float, Meta(ge=1e-3, le=1e3)] | None = None
    top_k: Annotated[int, Meta(ge=0, lt=2**26)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(ge=1e-3, le=1e3)] | None = None

    def stated(self) -> dict[str, Any]:
        """The stated values; floats stay floats, since transformers refuses integers in their place."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}


GENERATION_KEYS = GenerationSettings.__struct_fields__


class ImageSettings(Settings, frozen=True, kw_only=True):
    """Settings of ``preprocessor_config.json`` that all processors know. Others are kept, and tried on an image."""

    image_processor_type: Annotated[str, Meta(pattern=r"^[0-9A-Za-z_]{1,100}ImageProcessor(Fast|Pil)?\Z")] | None = None
    feature_extractor_type: Annotated[str, Meta(pattern=r"^[0-9A-Za-z_]{1,100}FeatureExtractor\Z")] | None = None
    size: Side | Sides | None = None
    crop_size: Side | Sides | None = None
    pad_size: Side | Sides | None = None
    size_divisor: Side | None = None
    resample: Annotated[int, Meta(ge=0, le=5)] | None = None
    rescale_factor: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    crop_pct: Annotated[float, Meta(ge=1e-2, le=1)] | None = None
    image_mean: Mean | Annotated[list[Mean], Meta(min_length=1, max_length=4)] | None = None
    image_std: Deviation | Annotated[list[Deviation], Meta(min_length=1, max_length=4)] | None = None
    data_format: Literal["channels_first"] | None = None
    input_data_format: Literal["channels_first", "channels_last"] | None = None


class RopeSettings(Settings, frozen=True, kw_only=True):
    """What transformers reads when a module is built, or only when a text is long."""

    rope_type: Annotated[str, Meta(max_length=64)] | None = None
    type: Annotated[str, Meta(max_length=64)] | None = None
    rope_theta: Positive | None = None
    factor: Positive | None = None
    partial_rotary_factor: Annotated[float, Meta(gt=0, le=1)] | None = None
    original_max_position_embeddings: Positions | None = None
    max_position_embeddings: Positions | None = None
    attention_factor: Positive | None = None
    beta_fast: Positive | None = None
    beta_slow: Positive | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    mscale: Annotated[float, Meta(ge=0, le=1e6)] | None = None
    mscale_all_dim: Annotated[float, Meta(ge=0, le=1e6)] | None = None
    truncate: bool | None = None
    short_factor: Factors | None = None
    long_factor: Factors | None = None

    def __post_init__(self) -> None:
        if self.short_factor is not None and len(self.short_factor) != len(self.long_factor or ()):
            raise ValueError("a long_factor as long as short_factor")


def rope_of(value: Any) -> dict[str, Any]:
    """The rotary settings in a configuration's value, by type of layer; by ``""`` where one object is for all.

    Args:
        value: an object.
    """
    each = {layers: inner for layers, inner in value.items() if isinstance(inner, dict)}
    return each if each and len(each) == len(value) else {"": value}
