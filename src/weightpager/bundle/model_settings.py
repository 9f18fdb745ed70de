"""A model's own settings: which models run, its tokenizer's files, and code that none may bring."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from weightpager.errors import BundleFormatError

MOST_DEPTH = 12
"""Most levels of a document; honest ones have four or five."""

MOST_NAMES = 2**16
"""Most entries of one object: a configuration names each of its classes."""

MOST_ITEMS = 2**16
"""Most values of one list, nested lists included."""

_NAMES = ("id2label", "label2id", "ner_labels")  # objects whose keys or values are the user's own class names


@dataclass(frozen=True)
class ModelSetting:
    """One key of an object and its JSON value.

    Attributes:
        path: of the key, as ``text_config.num_hidden_layers``.
        key: its last part.
        depth: 0 for a key of the document itself.
    """

    path: str
    key: str
    value: Any
    depth: int


def settings_of(name: str, values: dict[str, Any], depth: int = 0, at: str = "") -> Iterator[ModelSetting]:
    """All settings of a document, outer ones first, without the names of classes."""
    if depth >= MOST_DEPTH:
        raise BundleFormatError(name, at, f"at most {MOST_DEPTH} levels", "more")
    if len(values) > MOST_NAMES:
        raise BundleFormatError(name, at or "document", f"at most {MOST_NAMES} entries", len(values))
    for key, value in values.items():
        setting = ModelSetting(f"{at}.{key}"[-200:].lstrip("."), key, value, depth)
        yield setting
        if key in _NAMES:
            if isinstance(value, (dict, list)) and len(value) > MOST_NAMES:
                raise BundleFormatError(name, setting.path, f"at most {MOST_NAMES} classes", len(value))
            continue
        for inner in _objects(name, setting):
            yield from settings_of(name, inner, depth + 1, setting.path)


def _objects(name: str, setting: ModelSetting) -> Iterator[dict[str, Any]]:
    """The objects that a value is, or has in its lists."""
    waiting, items = [(setting.value, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, dict):
            yield value
        elif isinstance(value, list):
            items += len(value)
            if items > MOST_ITEMS or depth > MOST_DEPTH:
                raise BundleFormatError(name, setting.path, f"at most {MOST_ITEMS} values", "more")
            waiting += [(item, depth + 1) for item in value]


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


class BoundedSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Frozen; no silent conversion. Bounds keep numbers finite."""


class CommonSettings(BoundedSettings, frozen=True, kw_only=True):
    """Settings whose types a configuration class checks only if it declares them."""

    sliding_window: Tokens | None = None
    attention_chunk_size: Tokens | None = None
    original_max_position_embeddings: Tokens | None = None
    layer_types: Annotated[list[str], Meta(max_length=2**9)] | None = None
    num_kv_shared_layers: Annotated[int, Meta(ge=0, le=2**9)] | None = None
    is_decoder: bool | None = None
    use_cache: bool | None = None
    tie_word_embeddings: bool | None = None


class GenerationSettings(BoundedSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
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


class ImageSettings(BoundedSettings, frozen=True, kw_only=True):
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


class RopeSettings(BoundedSettings, frozen=True, kw_only=True):
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
    """The rotary settings in a configuration's value, by type of layer; by ``""`` where one object is for all."""
    each = {layers: inner for layers, inner in value.items() if isinstance(inner, dict)}
    return each if each and len(each) == len(value) else {"": value}


PaddedSide = Literal["left", "right"]


class TokenizerSettings(BoundedSettings, frozen=True, kw_only=True):
    """Settings of all tokenizers in ``tokenizer_config.json``. Further ones are kept, and tried."""

    tokenizer_class: Annotated[str, Meta(pattern=r"^[0-9A-Za-z_]{1,100}\Z")] | None = None
    model_max_length: Annotated[int, Meta(ge=1)] | Annotated[float, Meta(ge=1, le=1e300)] | None = None
    max_length: Tokens | None = None
    stride: Tokens | None = None
    pad_to_multiple_of: Tokens | None = None
    padding_side: PaddedSide | None = None
    truncation_side: PaddedSide | None = None


class _Fixed(Struct):
    strategy: Literal["BatchLongest"] | dict[Literal["Fixed"], Tokens]
    pad_to_multiple_of: Tokens | None = None


class TokenizerFile(Struct):
    """The parts of ``tokenizer.json`` that decide how long a text becomes; the tokenizers library checks the rest."""

    padding: _Fixed | None = None
    normalizer: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None


_MOST_GROWTH = 2**12  # how many times a text may grow in all steps of its normalizer, or of its decoder, together
_GROWTH = {"Precompiled": 32, "NFKC": 18, "NFKD": 18, "NFC": 3, "NFD": 4, "ByteLevel": 2, "Nmt": 1}
"""Characters that a step may make of one."""

_MOST_STEPS = 256

_MOST_AROUND = 2**10  # most tokens that are added around a text
_MOST_PATTERN = 2**12


def check_tokenizer_file(name: str, file: TokenizerFile) -> None:
    """Refuse steps that make a short text much longer."""
    for field in ("normalizer", "decoder"):
        growth = 1
        for number, step in enumerate(_steps(name, field, getattr(file, field))):
            growth *= _growth(name, field, step)
            if growth > _MOST_GROWTH or number >= _MOST_STEPS:
                raise BundleFormatError(name, field, f"texts that grow at most {_MOST_GROWTH} times", "more")
    around = sum(1 + _items(step.get("ids")) for step in _token_objects(name, "post_processor", file.post_processor))
    if around > _MOST_AROUND:
        raise BundleFormatError(name, "post_processor", f"at most {_MOST_AROUND} tokens around a text", around)


def _items(value: Any) -> int:
    """Length of a list; 0 for anything else, which the library refuses."""
    return len(value) if isinstance(value, list) else 0


def _growth(name: str, field: str, step: dict[str, Any]) -> int:
    """Characters that a step may make of one; the library refuses steps with other types."""
    kind = step.get("type")
    if kind == "Replace":
        pattern, content = step.get("pattern"), str(step.get("content"))
        least = len(str(pattern.get("String", ""))) if isinstance(pattern, dict) else 0
        if isinstance(pattern, dict) and len(str(pattern.get("Regex", ""))) > _MOST_PATTERN:
            raise BundleFormatError(name, field, f"patterns of at most {_MOST_PATTERN} characters", "a longer one")
        return -(-len(content) // max(1, least)) or 1
    if kind == "Prepend":
        return 1 + len(str(step.get("prepend")))
    return _GROWTH.get(str(kind), 2 if kind == "Metaspace" else 1)


def _steps(name: str, field: str, value: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    return (found for found in _token_objects(name, field, value) if "type" in found)


def _token_objects(name: str, field: str, value: Any) -> Iterator[dict[str, Any]]:
    """The objects that a value is or has."""
    waiting = [(value, 0)]
    while waiting:
        found, depth = waiting.pop()
        if depth > _MOST_STEPS:
            raise BundleFormatError(name, field, f"at most {_MOST_STEPS} levels", "more")
        if isinstance(found, dict):
            yield found
        inner = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
        waiting += [(item, depth + 1) for item in inner]


_NOTHING: tuple[object, ...] = (None, False, "", {}, [])  # values that ask for nothing


@dataclass(frozen=True)
class _Refusal:
    """Settings, by their whole names, that ask for something unless they have one of the allowed values."""

    names: re.Pattern[str]
    what: str
    allowed: tuple[object, ...] = _NOTHING


_REFUSALS = (
    _Refusal(re.compile(r"auto_map"), "asks to run the directory's own code", ()),
    _Refusal(re.compile(r"trust_remote_code|custom_\w+"), "asks to run the directory's own code"),
    # The internal names pass every check of transformers before 5.3.
    _Refusal(
        re.compile(r"_?attn_implementation(_internal)?"),
        "asks for a package's kernel, or code from a hub ('eager' and 'sdpa' don't)",
        (None, "eager", "sdpa"),
    ),
    _Refusal(
        re.compile(r"_?experts_implementation(_internal)?"),
        "asks for a package's kernel, or code from a hub ('eager', 'batched_mm' and 'grouped_mm' don't)",
        (None, "eager", "batched_mm", "grouped_mm"),
    ),
    _Refusal(
        re.compile(r"\w*_implementation(_internal)?|kernel_config|use_kernels"), "asks for kernels from elsewhere"
    ),
    _Refusal(
        re.compile(
            r"backbone(_kwargs)?|use_timm_backbone|use_pretrained_backbone|timm_\w+|adapter_config|peft_config|_hf_peft\w*|"
            r"\w*(repo|repo_id|repository|hub_id|hub_model_id)"
        ),
        "asks for another model",
    ),
    _Refusal(
        re.compile(
            r"(?!special_tokens_map_file$|\w*chat_template_file$)\w+_file|configuration_files|fast_tokenizer_files|"
            r"transformers_weights|subfolder|checkpoint_path"
        ),
        "asks to read a file of another name",
    ),
    _Refusal(re.compile(r"quantization_config|compression_config"), "says that weights are quantised"),
    _Refusal(
        re.compile(r"attribute_map|sub_configs\w*|base_model_\w+_plan|init_inputs|__(?!type$|float__$)\w*"),
        "asks to change how transformers works",
    ),
)

_ELSEWHERE = _Refusal(re.compile(r"\w*name_or_path"), "asks for another model")
"""In the document itself this only says where it came from. In a part of the document, transformers may load a model
from there."""


def foreign_code(name: str, values: dict[str, Any]) -> tuple[ModelSetting, str] | None:
    """The first setting, at any depth, that asks for something forbidden, and what it asks for; None if none does."""
    for setting in settings_of(name, values):
        for refusal in (*_REFUSALS, *([_ELSEWHERE] if setting.depth else [])):
            if refusal.names.fullmatch(setting.key):
                if not any(setting.value == value for value in refusal.allowed):
                    return setting, refusal.what
                break
    return None
