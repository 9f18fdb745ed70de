"""Model directories: loading them without running their code, and refusing what can't be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig, PreTrainedModel

from weightpager.bundle.format.manifest import TaskKind
from weightpager.compiler.model.kind import check_kind
from weightpager.compiler.model.named_parameters import canonical, parameters
from weightpager.compiler.task_file.file import TaskFile
from weightpager.engine.model.architecture import CLASSES, position_table
from weightpager.engine.model.image_reader import ImageReader, load_image_processor
from weightpager.engine.model.transformers_version import later_writer
from weightpager.errors import CompileError, WeightpagerError, first_line
from weightpager.machine.panics import panics_as_errors
from weightpager.nn import empty_on_meta, set_upright

_NOT_COMPUTING = {
    "architectures", "dtype", "torch_dtype", "transformers_version", "id2label", "label2id", "num_labels",
    "problem_type", "finetuning_task", "use_cache", "initializer_range", "initializer_factor",
    "output_attentions", "output_hidden_states", "return_dict", "gradient_checkpointing", "name_or_path",
    "task_specific_params", "tokenizer_class", "summary_first_dropout", "keys_to_ignore_at_inference",
    "pretraining_tp", "chunk_size_feed_forward",
}  # fmt: skip

PLAIN = {"chunk_size_feed_forward": 0, "output_attentions": False, "output_hidden_states": False, "return_dict": True}
"""Settings of how a model answers, not of what."""


def check_config(config: PretrainedConfig, task_file: TaskFile) -> None:
    """Refuse a kind of model that can't be compiled, and texts longer than it takes."""
    path = task_file.model
    if config.is_encoder_decoder:
        raise CompileError(f"{path}: expected an encoder or a decoder, found the encoder-decoder {config.model_type}")
    if getattr(config, "quantization_config", None) is not None:
        raise CompileError(f"{path}: expected float weights, found a quantised checkpoint")
    if task_file.takes_images:
        return
    most = getattr(config, "max_position_embeddings", None)
    for name in task_file.tasks:
        length = task_file.max_length_of(name)
        if isinstance(most, int) and 0 < most < length:
            raise CompileError(f"tasks.{name}.max_length: expected at most the {most} tokens of {path}, found {length}")


_VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken")


def has_tokenizer(path: Path) -> bool:
    """Whether a directory has words: without, transformers makes a tokenizer that knows none, and says nothing."""
    return any(file.is_file() for pattern in _VOCABULARIES for file in path.glob(pattern))


def load_tokenizer(path: Path) -> Any:
    """The directory's tokenizer as it is, but that it can pad.

    Raises:
        CompileError: there is none that can be used.
    """
    if not has_tokenizer(path):
        raise CompileError(
            f"{path}: expected a tokenizer, found none of {', '.join(_VOCABULARIES)}; save it beside the model "
            "(tokenizer.save_pretrained)"
        )
    options = {"config": load_config(path), "trust_remote_code": False, "local_files_only": True}
    tokenizer = call(path, AutoTokenizer.from_pretrained, path, **options)
    call(path, tokenizer, "a")  # some of what is wrong with one shows only when it is used
    if not tokenizer.is_fast:
        raise CompileError(f"{path}: expected a fast tokenizer (tokenizer.json), found {type(tokenizer).__name__}")
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise CompileError(f"{path}: expected a tokenizer with a padding or an end token, found neither")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_known(tokenizer: Any, number: int, words: int, where: str) -> None:
    """Refuse a word that only the tokenizer knows: it was given to it, and not to the model.

    Args:
        tokenizer: of the model.
        number: the word's id.
        words: how many the model knows.
        where: for the error.
    """
    if number >= words:
        token = tokenizer.convert_ids_to_tokens(number)
        raise CompileError(
            f"{where}: expected words that the model knows, with ids below {words}, found {token!r}, {number}; "
            "give the model as many as its tokenizer has (model.resize_token_embeddings), and save it again"
        )


def padding_of(config: PretrainedConfig, tokenizer: Any, words: int, path: Path) -> int:
    """The padding that a model is built with: its tokenizer's, but its own where its positions begin behind that.

    A classifier over a decoder looks for the last token before the padding; but RoBERTa's tokens would all have
    other positions than it was trained with.

    Args:
        config: of the model.
        tokenizer: of the model, which can pad.
        words: how many the model knows.
        path: for errors.
    """
    own: int | None = getattr(config, "pad_token_id", None)
    if own is not None and own != tokenizer.pad_token_id and 0 <= own < words:
        with empty_on_meta():
            if position_table(call(path, AutoModel.from_config, config, trust_remote_code=False)) is not None:
                return own
    return int(tokenizer.pad_token_id)


def load_image_reader(path: Path, config: PretrainedConfig) -> ImageReader:
    """The directory's image processor, with what the model expects of it."""
    if not (path / "preprocessor_config.json").is_file():
        raise CompileError(f"{path}: expected an image processor, found no preprocessor_config.json in it")
    return cast(ImageReader, call(path, lambda: ImageReader(load_image_processor(path, load_config(path)), config)))


def from_pretrained(path: Path, kind: TaskKind, seed: int, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A module in float32 and evaluation mode, new weights by ``seed``; and how its loading went.

    Linear layers hold their weights as [out, in], also those that are saved otherwise.
    """
    arguments = {"trust_remote_code": False, "local_files_only": True}
    with torch.random.fork_rng(devices=[]):
        config = load_config(path, **options)
        check_kind(config, kind, path)
        with empty_on_meta():  # which stops where the configuration asks for too much
            call(path, CLASSES[kind].from_config, config, trust_remote_code=False)
        torch.manual_seed(seed)
        model, info = call(
            path, CLASSES[kind].from_pretrained, path, config=config, output_loading_info=True,
            ignore_mismatched_sizes=True, **arguments,
        )  # fmt: skip
    set_upright(model)
    return model.float().eval(), info


def load_config(path: Path, **options: Any) -> PretrainedConfig:
    """The directory's configuration, some of it changed."""
    found = call(path, AutoConfig.from_pretrained, path, local_files_only=True, trust_remote_code=False, **options)
    if (writer := later_writer(found)) is not None:
        raise CompileError(
            f"{path}: expected a model that transformers {transformers.__version__} reads, found one that {writer} "
            "wrote; update transformers"
        )
    return plain(cast(PretrainedConfig, found))


def plain(config: PretrainedConfig) -> PretrainedConfig:
    """The same, in place, with outputs as they are read here, and nothing computed in chunks: values stay the same."""
    for key, value in PLAIN.items():
        if hasattr(config, key):
            setattr(config, key, value)
    return config


def check_same_architecture(ours: PretrainedConfig, theirs: PretrainedConfig, where: str) -> None:
    """Refuse a checkpoint that computes something else than the model, given the same weights."""
    if ours.model_type != theirs.model_type:
        raise CompileError(f"{where}: expected a checkpoint of {ours.model_type}, found one of {theirs.model_type}")
    wanted, found = (_computing(config) for config in (ours, theirs))
    # What one of them doesn't state is as ever; what this transformers has no such setting for, it doesn't look at.
    usual = _computing(plain(type(ours)()))
    for key in sorted(usual):
        if wanted.get(key, usual[key]) != found.get(key, usual[key]):
            raise CompileError(f"{where}: expected {key} {wanted.get(key)!r} as in the model, found {found.get(key)!r}")


def _computing(config: PretrainedConfig) -> dict[str, Any]:
    """The settings that change what a model computes."""
    return {
        key: value
        for key, value in config.to_dict().items()
        if key not in _NOT_COMPUTING and not key.startswith("_") and "drop" not in key and not key.endswith("_token_id")
    }


def check_same_words(ours: Any, directory: Path, where: str) -> None:
    """Refuse a checkpoint whose own tokenizer, if it has one, numbers words otherwise than the model's."""
    if not has_tokenizer(directory):
        return
    if load_tokenizer(directory).get_vocab() != ours.get_vocab():
        raise CompileError(f"{where}: expected the model's tokenizer, found one with another vocabulary")


def check_same_pixels(ours: ImageReader, directory: Path, config: PretrainedConfig, where: str) -> None:
    """Refuse a checkpoint whose own image processor, if it has one, makes other pixels than the model's."""
    if not (directory / "preprocessor_config.json").is_file():
        return
    wanted, found = (reader.processor.to_dict() for reader in (ours, load_image_reader(directory, config)))
    for key in sorted(wanted.keys() | found.keys()):
        if wanted.get(key) != found.get(key):
            raise CompileError(
                f"{where}: expected the model's image processor with {key} {wanted.get(key)!r}, "
                f"found {found.get(key)!r}"
            )


def class_names(config: PretrainedConfig) -> tuple[str, ...]:
    """A head's classes in the order of their ids."""
    return tuple(str(config.id2label.get(number, f"LABEL_{number}")) for number in range(config.num_labels))


def check_classes(config: PretrainedConfig, where: str) -> None:
    """Refuse a head with fewer than two different classes."""
    names = class_names(config)
    if len(set(names)) < max(2, len(names)):
        raise CompileError(f"{where}: expected two or more different classes, found {', '.join(names)}")


def check_complete(
    model: PreTrainedModel, info: dict[str, Any], where: str, may_lack: Callable[[str], bool], hint: str = ""
) -> None:
    """Refuse weights that transformers filled with random numbers, except those that will be trained or copied."""
    prefix = model.base_model_prefix + "."
    absent = [*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])]
    for name in sorted(canonical(name, prefix) for name in absent):
        if not may_lack(name):
            raise CompileError(f"{where}: expected the weight {name!r}, the checkpoint has none of that shape{hint}")


def check_finite(model: PreTrainedModel, task: str, path: Path) -> None:
    """Refuse weights that are NaN or infinite."""
    for name, tensor in parameters(model).items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CompileError(f"{path}: expected finite weights, found NaN or infinity in {name!r} (task {task})")


def check_positions(model: PreTrainedModel, length: int, where: str) -> None:
    """Refuse texts longer than a table of positions that, as RoBERTa's, begins behind its padding."""
    most = position_table(model)
    if most is not None and length > most:
        raise CompileError(f"{where}.max_length: expected at most the model's {most} tokens, found {length}")


def check_causal(model: PreTrainedModel, path: Path, name: str) -> None:
    """An encoder with a language-model head sees the token that it should predict; its perplexity means nothing."""
    ids = torch.zeros(1, 4, dtype=torch.long)
    changed = ids.clone()
    changed[0, -1] = 1
    with torch.inference_mode():
        mask = torch.ones_like(ids)
        first, second = (model(input_ids=i, attention_mask=mask).logits[:, :-1] for i in (ids, changed))
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-4):
        raise CompileError(f"tasks.{name}: language-modeling needs a causal model, {path} looks at later tokens")


def call(path: Path, function: Any, *arguments: Any, **options: Any) -> Any:
    """Whatever a library says about a broken model directory, as our error."""
    try:
        with panics_as_errors():
            return function(*arguments, **options)
    except WeightpagerError:
        raise
    except Exception as error:
        raise CompileError(f"{path}: cannot be loaded: {first_line(error)}") from error
