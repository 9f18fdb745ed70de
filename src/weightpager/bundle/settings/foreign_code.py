"""Settings that would have transformers run code, or read files, that a directory doesn't bring or may not bring."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from weightpager.bundle.settings.walk import Setting, settings_of

_NOTHING: tuple[object, ...] = (None, False, "", {}, [])  # values that ask for nothing


@dataclass(frozen=True)
class _Refusal:
    """Settings that may have some values only.

    Attributes:
        names: of the settings, whole.
        what: any other value asks for.
        allowed: values.
    """

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


def foreign_code(name: str, values: dict[str, Any]) -> tuple[Setting, str] | None:
    """The first setting, at any depth, that asks for something forbidden, and what it asks for; None if none does.

    Args:
        name: of the file, for errors.
        values: the document.

    Raises:
        BundleFormatError: it is deeper or longer than any honest one.
    """
    for setting in settings_of(name, values):
        for refusal in (*_REFUSALS, *([_ELSEWHERE] if setting.depth else [])):
            if refusal.names.fullmatch(setting.key):
                if not any(setting.value == value for value in refusal.allowed):
                    return setting, refusal.what
                break
    return None
