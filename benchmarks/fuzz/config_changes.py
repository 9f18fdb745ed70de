"""Changes of the JSON in ``model/`` by somebody who knows what transformers makes of it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any

CONFIG, GENERATION = "model/config.json", "model/generation_config.json"
PREPROCESSOR, TOKENIZER = "model/preprocessor_config.json", "model/tokenizer_config.json"

Document = dict[str, Any]

_DEPTHS = (
    "num_hidden_layers", "n_layers", "n_layer", "num_layers", "depths", "depth", "encoder_layers", "decoder_layers",
    "num_encoder_layers", "num_decoder_layers", "num_hidden_groups", "inner_group_num", "num_feedforward_networks",
    "num_hash_functions", "num_hashes", "num_stages", "num_blocks", "block_sizes", "num_conv_layers", "attention_types",
    "attn_layers", "layer_types", "layers_block_type", "mlp_layer_types", "num_experts", "num_local_experts",
    "n_routed_experts", "max_window_layers", "num_nextn_predict_layers", "num_mem_blocks", "hidden_sizes",
)  # fmt: skip
"""What architectures call their numbers of layers, blocks or parts."""

_WIDTHS = (
    "head_dim", "hidden_size", "d_model", "n_embd", "intermediate_size", "ffn_dim", "d_ff", "embedding_size",
    "vocab_size", "image_size", "patch_size", "num_channels", "max_position_embeddings", "n_positions", "n_ctx",
    "type_vocab_size", "num_labels", "num_attention_heads", "num_key_value_heads", "n_head", "num_buckets",
    "relative_attention_num_buckets", "max_2d_position_embeddings", "sliding_window", "axial_pos_shape",
    "original_max_position_embeddings", "layer_norm_eps", "rms_norm_eps", "rope_theta", "initializer_range",
)  # fmt: skip

_FLAGS = (
    "is_encoder_decoder", "add_cross_attention", "is_decoder", "tie_word_embeddings", "tie_encoder_decoder",
    "use_cache",
    "torchscript", "output_attentions", "output_hidden_states", "return_dict", "use_return_dict", "use_bfloat16",
    "gradient_checkpointing", "cross_attention_hidden_size", "pruned_heads", "problem_type", "hidden_act",
    "position_embedding_type", "dtype", "torch_dtype", "architectures", "finetuning_task", "task_specific_params",
    "prefix", "id2label", "label2id", "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id",
    "sep_token_id", "chunk_size_feed_forward", "qkv_bias", "attention_bias", "use_mean_pooling",
    "interpolate_pos_encoding",
)  # fmt: skip

_CODE = (
    "auto_map", "trust_remote_code", "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
    "_attn_implementation_autoset", "_experts_implementation", "experts_implementation", "_name_or_path",
    "name_or_path", "custom_pipelines", "quantization_config", "compression_config", "use_kernels", "kernel_config",
    "backbone", "use_pretrained_backbone", "use_timm_backbone", "backbone_kwargs", "tp_plan", "base_model_tp_plan",
    "transformers_version", "code_revision", "adapter_kwargs", "_commit_hash", "model_type", "tokenizer_class",
)  # fmt: skip

_PARTS = (
    "text_config", "vision_config", "audio_config", "encoder", "decoder", "generator", "backbone_config",
    "keypoint_detector_config", "qformer_config", "language_config", "llm_config", "thinker_config", "question_encoder",
    "perceiver_config", "speech_config", "text_encoder", "rope_scaling", "rope_parameters", "quantization_config",
)  # fmt: skip
"""Configurations in configurations."""

_TYPES = (
    "bert", "llama", "vit", "gpt2", "albert", "reformer", "beit", "clip", "llava", "bart", "t5", "deformable_detr",
    "superglue", "lightglue", "encoder-decoder", "vision-encoder-decoder", "musicgen", "funnel", "gpt_neo", "mpt",
    "longformer", "zamba2", "mamba", "swin", "dpt", "upernet", "opt", "gemma3", "qwen2_vl", "mobilebert", "nonsense",
    "",
)  # fmt: skip

_NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 2, 3, 64, 1000, 4000, 8192, 10**5, 2**20, 2**28, 2**31, 2**63, 10**30, 0.5, -0.5, 1e30, 1e-30, 1e400,
)  # fmt: skip

_WORDS: tuple[Any, ...] = (
    "x", "", "somebody/kernel", "eager", "sdpa", "flash_attention_2", "flex_attention", "paged|eager", "gelu",
    "float64",
    "float16", "int8", "bfloat16", "torch.float16", "single_label_classification", "regression", "linear", "dynamic",
    "yarn", "longrope", "llama3", "default", "../../etc/passwd", "/etc", "static", "offloaded", "http://127.0.0.1:9/",
)  # fmt: skip


def _others(random: Random) -> Any:
    return random.choice(
        [
            None, True, False, [], {}, [None], [1], [2, 2, 2], [2] * 64, [4000] * 3, [[["global", "local"], 10**6]],
            {"0": "x"}, {"a": {"b": {}}}, {"height": 16, "width": 16}, {"x": [1] * 9},
            {"AutoConfig": "evil.Evil"}, {"AutoConfig": "somebody/repo--evil.Evil"}, {"quant_method": "gptq",
            "bits": 4},
            {"quant_method": "bitsandbytes", "load_in_8bit": True}, {"quant_method": "fp8"},
            {"rope_type": "yarn", "factor": 4.0}, {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0] * 8},
            {"rope_type": "linear"}, {"rope_type": "dynamic", "factor": "x"}, {"rope_type": "llama3", "factor": 0},
            {"rope_type": "default", "rope_theta": {"a": 1}}, {"type": "longrope", "long_factor": [1.0] * 10**5},
        ]
    )  # fmt: skip


def _huge(random: Random) -> Any:
    how: list[Callable[[], Any]] = [
        lambda: [2] * 100_000,
        lambda: [[2] * 500] * 20,
        lambda: ["full_attention"] * 5000,
        lambda: {str(number): f"label {number}" for number in range(70_000)},
    ]
    return random.choice(how)()


def _value(random: Random) -> Any:
    kind = random.random()
    if kind < 0.02:
        return _huge(random)
    return random.choice(_NUMBERS if kind < 0.35 else _WORDS) if kind < 0.65 else _others(random)


def _config(document: Document, random: Random) -> None:
    """Another model type, keys of code, of depth, of width, of flags; here or in a part."""
    place = document if random.random() < 0.5 else _part(document, random)
    own = [document[key] for key in _PARTS if isinstance(document.get(key), dict) and "model_type" in document[key]]
    if own and random.random() < 0.7:
        place = random.choice(own)
    if random.random() < 0.25:
        place["model_type"] = random.choice(_TYPES)
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        key = random.choice(random.choice([_DEPTHS, _WIDTHS, _FLAGS, _CODE, tuple(place) or _FLAGS, _PARTS]))
        place[key] = _value(random)


def _part(document: Document, random: Random) -> Document:
    """A configuration in the configuration, perhaps far down."""
    whole, place = copy.deepcopy(document), document
    for _ in range(random.choice([1, 1, 1, 2, 3, 40])):
        inner: Document = random.choice(
            [{}, {"model_type": random.choice(_TYPES)}, copy.deepcopy(whole), {"trust_remote_code": True}]
        )
        place[random.choice(_PARTS)] = inner
        place = inner
    return place


_GENERATION_KEYS = (
    "bos_token_id", "eos_token_id", "pad_token_id", "do_sample", "temperature", "top_k", "top_p", "min_p",
    "repetition_penalty",
)  # fmt: skip

_OTHER_GENERATION_KEYS = (
    "max_length", "max_new_tokens", "num_beams", "cache_implementation", "custom_generate", "stop_strings", "use_cache",
    "prompt_lookup_num_tokens", "assistant_early_exit", "watermarking_config", "guidance_scale", "compile_config",
    "num_return_sequences", "bad_words_ids", "forced_eos_token_id", "transformers_version", "typical_p", "constraints",
)  # fmt: skip


def _generation(document: Document, random: Random) -> None:
    """Values that no decoder can go on by, and keys that ask for more."""
    for _ in range(random.choice([1, 1, 2, 3])):
        keys = _OTHER_GENERATION_KEYS if random.random() < 0.15 else _GENERATION_KEYS
        document[random.choice(keys)] = random.choice(
            [
                _value(random),
                random.choice(_NUMBERS),
                3,
                15,
                16,
                [3],
                [3, 99],
                [[3]],
                ["3"],
                True,
                False,
                0.0,
                1.0,
                "0.5",
            ]
        )


_PREPROCESSOR_KEYS = (
    "size", "crop_size", "pad_size", "image_mean", "image_std", "rescale_factor", "resample", "do_resize", "do_rescale",
    "do_normalize", "do_center_crop", "do_pad", "do_convert_rgb", "image_processor_type", "feature_extractor_type",
    "processor_class", "auto_map", "data_format", "input_data_format", "return_tensors", "size_divisor", "patch_size",
    "num_channels", "device", "disable_grouping", "backend", "crop_pct", "min_pixels", "max_pixels", "image_size",
)  # fmt: skip

_PROCESSORS = (
    "ViTImageProcessor", "ViTImageProcessorFast", "CLIPImageProcessor", "BeitImageProcessor", "ConvNextImageProcessor",
    "DeiTImageProcessor", "EfficientNetImageProcessor", "PixtralImageProcessor", "Qwen2VLImageProcessor", "Evil",
    "SamImageProcessor", "OwlViTImageProcessor", "DonutImageProcessor", "LlavaNextImageProcessor",
    "ViTFeatureExtractor",
)  # fmt: skip


def _preprocessor(document: Document, random: Random) -> None:
    """Sizes, means and flags of wrong types, and other classes."""
    for _ in range(random.choice([1, 1, 2, 3])):
        key = random.choice([*_PREPROCESSOR_KEYS, *document])
        document[key] = random.choice(
            [
                _value(random), random.choice(_NUMBERS), {"shortest_edge": random.choice(_NUMBERS)}, 16, [0.5] * 3, 0.0,
                {"height": random.choice(_NUMBERS), "width": 16}, {"longest_edge": 16, "shortest_edge": 16}, [0.5],
                [16],
                {"height": "16", "width": "16"}, [0.0] * 3, [0.5] * 4, ["a"] * 3, [10**400] * 3, [16, 16], (0, 1), True,
                {"max_height": 16, "max_width": 10**6},
            ]
        )  # fmt: skip
    if random.random() < 0.2:
        document["image_processor_type"] = random.choice(_PROCESSORS)


_TOKENIZER_KEYS = (
    "tokenizer_class", "model_max_length", "padding_side", "truncation_side", "auto_map", "chat_template",
    "name_or_path",
    "added_tokens_decoder", "extra_special_tokens", "additional_special_tokens", "pad_token", "unk_token", "eos_token",
    "bos_token", "cls_token", "clean_up_tokenization_spaces", "tokenizer_file", "vocab_file", "backend", "is_local",
    "model_input_names", "split_special_tokens", "special_tokens_map_file", "trust_remote_code", "processor_class",
    "do_lower_case", "add_prefix_space", "legacy", "use_fast", "from_slow", "max_length", "stride", "fix_mistral_regex",
)  # fmt: skip

_TOKENIZERS = (
    "BertTokenizer", "LlamaTokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend", "Evil",
    "T5Tokenizer", "ByT5Tokenizer", "RagTokenizer", "Wav2Vec2CTCTokenizer", "BertJapaneseTokenizer",
)  # fmt: skip


def _tokenizer(document: Document, random: Random) -> None:
    for _ in range(random.choice([1, 1, 2, 3])):
        key = random.choice([*_TOKENIZER_KEYS, *document])
        document[key] = _value(random)
    if random.random() < 0.2:
        document["tokenizer_class"] = random.choice(_TOKENIZERS)


CHANGES: dict[str, Callable[[Document, Random], None]] = {
    CONFIG: _config,
    GENERATION: _generation,
    PREPROCESSOR: _preprocessor,
    TOKENIZER: _tokenizer,
}
"""File → what changes it in place."""


def change(name: str, content: bytes, random: Random) -> tuple[bytes, str]:
    """Another document for one of the files in `CHANGES`, and what was done in words."""
    document: Document = json.loads(content)
    before = copy.deepcopy(document)
    CHANGES[name](document, random)
    different = {key: value for key, value in document.items() if key not in before or before[key] != value}
    return json.dumps(document).encode(), json.dumps(different)[:160]
