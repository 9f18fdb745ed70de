"""Which types of models are built: those whose configuration makes nothing but itself, whatever is in it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

from weightpager.errors import BundleFormatError

_BUILDS = frozenset({
    "AutoConfig", "AutoModel", "CONFIG_MAPPING", "consolidate_backbone_kwargs_to_config", "from_pretrained",
    "import_module", "get_default_detectron2_config",
})  # fmt: skip
"""Names in the code of a configuration class that makes another one, which a file chooses."""

LOADERS = frozenset({"layoutlmv2", "mra", "rwkv", "timm_wrapper", "yoso"})
"""Types whose modules load code of their own accord: kernels from a hub, or what another package builds by name. A test
looks for such in the transformers that is installed."""

_PLAIN_CLASS_VALUES = frozenset({"model_type", "keys_to_ignore_at_inference", "is_composition"})
"""What configurations may state, and have as values of their class."""


_LLAVA_TOWERS = frozenset({"clip_vision_model", "siglip_vision_model", "dinov2"})
_LANGUAGES = frozenset({"llama", "mistral", "qwen2"})

PICTURE_MODELS: Mapping[str, Mapping[str, frozenset[str]]] = {
    "llava": {
        "vision_config": _LLAVA_TOWERS,
        "text_config": _LANGUAGES,
    },
    "qwen2_vl": {
        "vision_config": frozenset({"qwen2_vl_vision", "qwen2_vl"}),
        "text_config": frozenset({"qwen2_vl_text"}),
    },
    "qwen2_5_vl": {
        "vision_config": frozenset({"qwen2_5_vl_vision", "qwen2_5_vl"}),
        "text_config": frozenset({"qwen2_5_vl_text"}),
    },
    "llava_next": {"vision_config": _LLAVA_TOWERS, "text_config": _LANGUAGES},
    "idefics3": {"vision_config": frozenset({"idefics3_vision", "idefics3"}), "text_config": _LANGUAGES},
    "smolvlm": {"vision_config": frozenset({"smolvlm_vision", "smolvlm"}), "text_config": _LANGUAGES},
}
"""Types of models that are a picture tower, a connector and a language model; the types that each part may have."""

PATCH_MODELS = frozenset({"qwen2_vl", "qwen2_5_vl"})
"""Those whose pictures are runs of patches. Their parts are of one class whatever is stated, and may stay unstated."""

TILE_MODELS = frozenset({"idefics3", "smolvlm"})
"""Those whose pictures are tiles between words. Their towers are of one class whatever is stated, or unstated."""

PACKING_MODELS = frozenset({"llava_next"})
"""Those whose pictures are tiles whose features are put together."""

_WHOLE = re.compile(r"(?<!^perceiver)(?<!^transformers\.js)_config$|^(encoder|decoder|generator)$")
"""Settings that are a model of their own where they are objects. SmolVLM's directories state two that nothing reads."""


def builds_only_itself(config_class: type[Any]) -> bool:
    """Whether a configuration's class makes no other configuration than its own parts', of classes that it names."""
    parts: Iterable[type[Any]] = getattr(config_class, "sub_configs", {}).values()
    if not issubclass(config_class, PretrainedConfig) or not _BUILDS.isdisjoint(_names_used(config_class)):
        return False
    return all(builds_only_itself(part) for part in parts)


def allowed_class(model_type: Any) -> type[PretrainedConfig] | None:
    """The configuration class of a type of models; None if there is none, or it isn't built here."""
    if not isinstance(model_type, str) or model_type in LOADERS or model_type not in CONFIG_MAPPING:
        return None
    found: type[PretrainedConfig] = CONFIG_MAPPING[model_type]
    return found if model_type in PICTURE_MODELS or builds_only_itself(found) else None


def hidden_parts(config_class: type[PretrainedConfig], values: dict[str, Any]) -> Iterator[str]:
    """Settings that would take the place of a part of their class, such as one of its methods."""
    known = {*getattr(config_class, "__dataclass_fields__", ()), *config_class.attribute_map, *_PLAIN_CLASS_VALUES}
    for name, value in values.items():
        part = inspect.getattr_static(config_class, name, None)
        if part is not None and name not in known and not (isinstance(part, property) and part.fset is not None):
            yield name
        inner = config_class.sub_configs.get(name)  # that of a picture model's part is known by its type alone
        if inner is not None and issubclass(inner, PretrainedConfig) and isinstance(value, dict):
            yield from (f"{name}.{found}" for found in hidden_parts(inner, value))


def check_config_class(name: str, values: dict[str, Any]) -> None:
    """Refuse a configuration whose class makes others than itself, or of which a setting would take a part's place."""
    model_type = values.get("model_type")
    kind = allowed_class(model_type)
    if kind is None:
        if isinstance(model_type, str) and model_type in CONFIG_MAPPING:
            wanted = (
                "a model that is made of no other whole model, which its configuration would choose; "
                "save the part that reads texts or images as a model of its own, and compile that"
            )
        else:
            wanted = f"a type that transformers {transformers.__version__} knows"
        raise BundleFormatError(name, "model_type", wanted, repr(model_type)[:80])
    for part, types in PICTURE_MODELS.get(str(model_type), {}).items():
        stated = isinstance(values.get(part), dict) and "model_type" in values[part]
        if stated or not (model_type in PATCH_MODELS or (model_type in TILE_MODELS and part == "vision_config")):
            _check_part(name, part, values.get(part), types)
    for setting in hidden_parts(kind, values):
        raise BundleFormatError(name, setting[:80], f"no setting of that name, a part of {kind.__name__}", "one")


def _check_part(name: str, part: str, values: Any, types: frozenset[str]) -> None:
    """Refuse a part of a model that is of another type than the named ones, or states none."""
    stated = values.get("model_type") if isinstance(values, dict) else None
    if not isinstance(stated, str) or stated not in types:
        raise BundleFormatError(name, f"{part}.model_type", f"one of {', '.join(sorted(types))}", repr(stated)[:80])
    for key, value in values.items():
        if isinstance(value, dict) and _WHOLE.search(key):  # which transformers would take for the part itself
            raise BundleFormatError(name, f"{part}.{key}"[:80], f"no model inside a {stated}", "one")
    for setting in hidden_parts(CONFIG_MAPPING[stated], values):
        raise BundleFormatError(name, f"{part}.{setting}"[:80], f"no setting of that name, a part of {stated}", "one")


def check_tokenizer_class(name: str, values: dict[str, Any]) -> None:
    """Refuse a name of a tokenizer's class that is another class of transformers."""
    stated = values.get("tokenizer_class")
    if stated is None:
        return
    kind = tokenizer_class_from_name(stated) if isinstance(stated, str) else stated
    # Where transformers knows none of that name, it takes what any tokenizer.json works with.
    if kind is not None and not (isinstance(kind, type) and issubclass(kind, PreTrainedTokenizerBase)):
        raise BundleFormatError(name, "tokenizer_class", "one of transformers' tokenizers", repr(stated)[:80])


def _names_used(config_class: type[Any]) -> Iterator[str]:
    """Global names and attributes in a class's own code, below what transformers has for all."""
    for base in config_class.__mro__:
        if base is PretrainedConfig:
            return
        for part in vars(base).values():
            accessors = (part.fget, part.fset) if isinstance(part, property) else (getattr(part, "__func__", part),)
            for function in accessors:
                plain = inspect.unwrap(function) if callable(function) else function
                if isinstance(plain, FunctionType):
                    yield from _names_in(plain.__code__)


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


MAJOR = int(transformers.__version__.split(".")[0])
"""The major version that is installed."""


def later_writer(config: PretrainedConfig) -> str | None:
    """The transformers that wrote a configuration, if that is of a later major version than the one here.

    It may name settings in another way, and a name that isn't known is passed over without a word: version 4 would
    compute what version 5 wrote with the usual base of rotary positions, whatever the model's.
    """
    writer = str(getattr(config, "transformers_version", None))
    major = re.match(r"\d{1,4}(?=\.)", writer)
    return writer if major is not None and int(major[0]) > MAJOR else None
