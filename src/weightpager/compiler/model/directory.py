"""Model directories: what they say of a model, read without running their code, and refused where it can't be used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import transformers
from transformers import AutoConfig, AutoModel, AutoTokenizer, GenerationConfig, PretrainedConfig

from weightpager.backends.torch.architecture import (
    TransformersImageReader,
    has_picture_tower,
    load_image_processor,
    position_table,
)
from weightpager.backends.torch.model_types import (
    PICTURE_MODELS,
    check_config_class,
    check_tokenizer_class,
    later_writer,
)
from weightpager.bundle.model_settings import GENERATION_KEYS, GenerationSettings, foreign_code
from weightpager.bundle.settings import (
    CONFIG,
    GENERATION,
    IMAGES,
    PROCESSOR,
    TOKENIZER,
    TOKENIZER_FILE,
    check_settings,
    generation_settings,
    is_settings,
    parse,
)
from weightpager.compiler.model.picture_tower import passed_alone
from weightpager.errors import BundleFormatError, CompileError, WeightpagerError, first_line, shown
from weightpager.machine.panics import panics_as_errors
from weightpager.nn.skeleton import empty_on_meta

_SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "min_p")

_FILES = (CONFIG, TOKENIZER, TOKENIZER_FILE, IMAGES, PROCESSOR)
"""What transformers reads beside weights and words."""

_ADAPTER = "adapter_config.json"

_TEMPLATE, _OLD_TEMPLATE = "chat_template.jinja", "chat_template.json"

_VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken")
"""Without one of these, transformers makes a tokenizer that knows no words, and says nothing."""

_NOT_COMPUTING = {
    "architectures", "dtype", "torch_dtype", "transformers_version", "id2label", "label2id", "num_labels",
    "problem_type", "finetuning_task", "use_cache", "initializer_range", "initializer_factor",
    "output_attentions", "output_hidden_states", "return_dict", "gradient_checkpointing", "name_or_path",
    "task_specific_params", "tokenizer_class", "summary_first_dropout", "keys_to_ignore_at_inference",
    "pretraining_tp", "chunk_size_feed_forward",
}  # fmt: skip

PLAIN = {"chunk_size_feed_forward": 0, "output_attentions": False, "output_hidden_states": False, "return_dict": True}
"""Settings of how a model answers, not of what."""


_ORIGIN = "_name_or_path"
"""The setting that says where a model came from."""


@dataclass(frozen=True)
class ModelDirectory:
    """A model directory whose settings are checked; ``config`` is without any task's head. Its weights aren't read."""

    path: Path
    config: PretrainedConfig

    @classmethod
    def open(cls, path: Path) -> ModelDirectory:
        """Check a directory, and read its configuration."""
        check_directory(path)
        return cls(path, _read_config(path))

    def configured(self, **options: Any) -> PretrainedConfig:
        """The configuration, some of it changed."""
        return _read_config(self.path, **options)

    def tokenizer(self) -> Any:
        """The tokenizer as it is, but that it can pad."""
        path = self.path
        if not self._has_tokenizer():
            raise CompileError(
                f"{path}: expected a tokenizer, found none of {', '.join(_VOCABULARIES)}; save it beside the model "
                "(tokenizer.save_pretrained)"
            )
        options = {"config": self.configured(), "trust_remote_code": False, "local_files_only": True}
        tokenizer = call(path, AutoTokenizer.from_pretrained, path, **options)
        call(path, tokenizer, "a")  # some of what is wrong with one shows only when it is used
        if not tokenizer.is_fast:
            raise CompileError(f"{path}: expected a fast tokenizer (tokenizer.json), found {type(tokenizer).__name__}")
        if tokenizer.pad_token_id is None:
            if tokenizer.eos_token is None:
                raise CompileError(f"{path}: expected a tokenizer with a padding or an end token, found neither")
            tokenizer.pad_token = tokenizer.eos_token
        if (template := self._processor_template()) is not None:
            tokenizer.chat_template = template
        return tokenizer

    def _processor_template(self) -> str | None:
        """The chat template that a processor of pictures has for itself, as older versions of transformers wrote it."""
        file = self.path / _OLD_TEMPLATE
        if not has_picture_tower(self.config) or (self.path / _TEMPLATE).is_file() or not file.is_file():
            return None
        template = _checked(self.path, parse, file.name, call(self.path, file.read_bytes)).get("chat_template")
        if not isinstance(template, str):
            raise CompileError(f"{file}: expected chat_template, a text, found {shown(template)}")
        return template

    def padding(self, tokenizer: Any) -> int:
        """The padding that a model is built with: its tokenizer's, but its own where its positions begin behind that.

        A classifier over a decoder looks for the last token before the padding; but RoBERTa's tokens would all have
        other positions than it was trained with.

        Raises:
            CompileError: the tokenizer pads with a word that the model doesn't know.
        """
        words = getattr(self.config.get_text_config(), "vocab_size", tokenizer.pad_token_id + 1)
        check_known(tokenizer, tokenizer.pad_token_id, words, str(self.path))
        configured: int | None = getattr(self.config, "pad_token_id", None)
        if configured is not None and configured != tokenizer.pad_token_id and 0 <= configured < words:
            with empty_on_meta():
                model = call(self.path, AutoModel.from_config, self.config, trust_remote_code=False)
                if position_table(model) is not None:
                    return configured
        return int(tokenizer.pad_token_id)

    def images(self) -> TransformersImageReader:
        """What reads images: the image processor, with what the model, or its picture tower, expects of it."""
        if not self._has_images():
            raise CompileError(f"{self.path}: expected an image processor, found no preprocessor_config.json in it")

        def read() -> TransformersImageReader:
            return TransformersImageReader(load_image_processor(self.path, self.configured()), self.config)

        return cast(TransformersImageReader, call(self.path, read))

    def check_same(self, model: ModelDirectory, reads: Any, where: str) -> None:
        """Refuse a checkpoint's directory whose weights would compute something else in the model's place.

        ``reads`` is the model's tokenizer, or its image reader where tasks read images.
        """
        _check_same_architecture(model.config, self.config, where)
        if isinstance(reads, TransformersImageReader):
            if self._has_images():
                _check_same_pixels(reads, self.images(), where)
            return
        if has_picture_tower(model.config) and self._has_images():
            _check_same_pixels(model.images(), self.images(), where)
        if self._has_tokenizer() and self.tokenizer().get_vocab() != reads.get_vocab():
            raise CompileError(f"{where}: expected the model's tokenizer, found one with another vocabulary")

    def _has_images(self) -> bool:
        """Whether there is an image processor; beside a tokenizer transformers 5 puts it into another file."""
        others = (PROCESSOR,) if has_picture_tower(self.config) else ()
        return any((self.path / name).is_file() for name in (IMAGES, *others))

    def _has_tokenizer(self) -> bool:
        return any(file.is_file() for pattern in _VOCABULARIES for file in self.path.glob(pattern))


def check_directory(path: Path) -> None:
    """Refuse a directory without a configuration, with code of its own, or with settings that no honest one has."""
    if not path.is_dir():
        raise CompileError(f"{path}: expected a model directory; a hub id must be downloaded first")
    if not (path / CONFIG).is_file():
        raise CompileError(f"{path}: expected a model directory, found no config.json in it")
    if (path / _ADAPTER).is_file():  # transformers would take the model that this names
        raise CompileError(
            f"{path}: expected a whole model, found {_ADAPTER}; merge the adapter into its model "
            "(peft's merge_and_unload), and save that"
        )
    for name in _FILES:
        if (path / name).is_file():
            _check_file(path, name)


def _check_file(path: Path, name: str) -> None:
    values = _checked(path, parse, name, call(path, (path / name).read_bytes))
    if is_settings(name) and (found := _checked(path, foreign_code, name, _without_origins(values))) is not None:
        setting, what = found
        raise CompileError(f"{path / name}: {setting.path} {what}; that is refused: remove it if it isn't needed")
    _checked(path, check_settings, name, values)
    if name == CONFIG:
        _checked(path, check_config_class, name, values)
    if name in (CONFIG, TOKENIZER):
        _checked(path, check_tokenizer_class, name, values)


def _without_origins(values: dict[str, Any]) -> dict[str, Any]:
    """A configuration without where the parts of a model with a picture tower came from.

    Published directories state it. Nothing is loaded from there: such a part is built of the settings beside it.
    """
    parts = PICTURE_MODELS.get(str(values.get("model_type")), {})
    named = {part: values[part] for part in parts if isinstance(values.get(part), dict)}
    kept = {part: {key: each for key, each in of.items() if key != _ORIGIN} for part, of in named.items()}
    return {**values, **kept}


def load_generation(path: Path) -> dict[str, Any]:
    """How the directory's decoder goes on unless told otherwise: what a bundle keeps of it; empty if it doesn't say.

    Raises:
        CompileError: it isn't what transformers can read, or out of bounds.
    """
    if not (path / GENERATION).is_file():
        return {}
    _checked(path, parse, GENERATION, call(path, (path / GENERATION).read_bytes))
    stated = call(path, GenerationConfig.from_pretrained, path, local_files_only=True).to_dict()
    unused = () if stated.get("do_sample") else _SAMPLING  # transformers would refuse to write these
    kept = {key: stated[key] for key in GENERATION_KEYS if stated.get(key) is not None and key not in unused}
    # Some say so that they have no such word.
    kept = {key: value for key, value in kept.items() if not (key.endswith("_token_id") and value == -1)}
    settings: GenerationSettings = _checked(path, generation_settings, GENERATION, kept)
    return settings.stated()


def check_known(tokenizer: Any, number: int, words: int, where: str) -> None:
    """Refuse a word that only the tokenizer knows: its number was given to it, and not to the model, of ``words``."""
    if number >= words:
        token = tokenizer.convert_ids_to_tokens(number)
        raise CompileError(
            f"{where}: expected words that the model knows, with ids below {words}, found {token!r}, {number}; "
            "give the model as many as its tokenizer has (model.resize_token_embeddings), and save it again"
        )


def _read_config(path: Path, **options: Any) -> PretrainedConfig:
    config = call(path, AutoConfig.from_pretrained, path, local_files_only=True, trust_remote_code=False, **options)
    if (writer := later_writer(config)) is not None:
        raise CompileError(
            f"{path}: expected a model that transformers {transformers.__version__} reads, found one that {writer} "
            "wrote; update transformers"
        )
    return cast(PretrainedConfig, call(path, passed_alone, _plain(cast(PretrainedConfig, config))))


def _plain(config: PretrainedConfig) -> PretrainedConfig:
    """The same, in place, with outputs as they are read here, and nothing computed in chunks: values stay the same."""
    for part in (config, *_parts(config)):
        for key, value in PLAIN.items():
            if hasattr(part, key):
                setattr(part, key, value)
    for part in _parts(config):
        setattr(part, _ORIGIN, "")
    return config


def _parts(config: PretrainedConfig) -> list[PretrainedConfig]:
    """The configurations of the models that a model is made of, where it is."""
    return [config.vision_config, config.text_config] if has_picture_tower(config) else []


def _check_same_architecture(ours: PretrainedConfig, theirs: PretrainedConfig, where: str) -> None:
    if ours.model_type != theirs.model_type:
        raise CompileError(f"{where}: expected a checkpoint of {ours.model_type}, found one of {theirs.model_type}")
    wanted, found = (_computing(config) for config in (ours, theirs))
    # What one of them doesn't state is as ever; what this transformers has no such setting for, it doesn't look at.
    usual = _computing(_plain(type(ours)()))
    for key in sorted(usual):
        if wanted.get(key, usual[key]) != found.get(key, usual[key]):
            raise CompileError(f"{where}: expected {key} {wanted.get(key)!r} as in the model, found {found.get(key)!r}")
    for our_part, their_part in zip(_parts(ours), _parts(theirs), strict=True):
        _check_same_architecture(our_part, their_part, where)


def _computing(config: PretrainedConfig) -> dict[str, Any]:
    """The settings that change what a model computes, without those of models that it is made of."""
    return {
        key: value
        for key, value in config.to_dict().items()
        if key not in _NOT_COMPUTING
        and key not in config.sub_configs
        and not key.startswith("_")
        and "drop" not in key
        and not key.endswith("_token_id")
    }


def _check_same_pixels(ours: TransformersImageReader, theirs: TransformersImageReader, where: str) -> None:
    wanted, found = (reader.processor.to_dict() for reader in (ours, theirs))
    for key in sorted(wanted.keys() | found.keys()):
        if wanted.get(key) != found.get(key):
            raise CompileError(
                f"{where}: expected the model's image processor with {key} {wanted.get(key)!r}, "
                f"found {found.get(key)!r}"
            )


def _checked(path: Path, check: Callable[..., Any], *arguments: Any) -> Any:
    """What a check of the bundle's format says, as an error about a directory."""
    try:
        return check(*arguments)
    except BundleFormatError as error:
        raise CompileError(f"{path}: cannot be loaded: {error}") from None


def call(path: Path, function: Any, *arguments: Any, **options: Any) -> Any:
    """Whatever a library says about a broken model directory, as our error."""
    try:
        with panics_as_errors():
            return function(*arguments, **options)
    except WeightpagerError:
        raise
    except Exception as error:
        raise CompileError(f"{path}: cannot be loaded: {first_line(error)}") from error
