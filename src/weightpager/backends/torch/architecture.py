"""The transformers classes behind a bundle: configuration, tokenizer or image processor, an empty module for a task."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from weightpager.backends.torch.model_types import (
    PACKING_MODELS,
    PATCH_MODELS,
    PICTURE_MODELS,
    TILE_MODELS,
    check_config_class,
    check_tokenizer_class,
    later_writer,
)
from weightpager.bundle import Bundle, TaskEntry, TaskKind
from weightpager.bundle.format.manifest import FORMS
from weightpager.bundle.format.names import MODEL
from weightpager.bundle.model_files import check_model_file, model_dir
from weightpager.bundle.settings import GENERATION, generation_settings
from weightpager.errors import BundleFormatError, ConfigError
from weightpager.interrupts import acquired, uninterrupted
from weightpager.machine.panics import panics_as_errors
from weightpager.nn.experts import set_upright
from weightpager.nn.skeleton import calls_for, empty_on_meta
from weightpager.readers.image_processor import ImageProcessor, Pixels, check_sides
from weightpager.readers.image_reader import ImageModel, ImageReader, check_pillow, open_image_reader
from weightpager.readers.tokenizer import Tokenizer, open_tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage


class TransformersImageReader(ImageReader):
    """Reads images as an image processor of transformers does, and without it where an `ImageProcessor` does the same.

    Attributes:
        processor: of transformers.
        vision: settings of the picture tower; none where there is none.
    """

    def __init__(self, processor: Any, config: PretrainedConfig) -> None:
        """Try it; errors are those of `ImageReader`."""
        self.processor = processor
        self.vision: Mapping[str, Any] = config.vision_config.to_dict() if has_picture_tower(config) else {}
        super().__init__(self._through, image_model(config))
        self._process = ImageProcessor.of(processor.to_dict()) or self._through

    def _through(self, image: PilImage) -> Pixels:
        """What transformers makes of an image; whatever it raises goes through."""
        found = self.processor(images=image, return_tensors="np")
        pixels = found["pixel_values"]
        if "image_grid_thw" in found and pixels.ndim == 2:  # of a run of patches
            return np.asarray(pixels[None], np.float32)
        if pixels.ndim == 5:  # of tiles, of which any will do
            pixels = pixels[:, -1]
        if len(pixels) != 1:
            raise ValueError(f"expected one image, found {list(np.shape(pixels))}")
        return np.asarray(pixels[0], np.float32)


def image_model(config: PretrainedConfig) -> ImageModel:
    looking = config.vision_config if has_picture_tower(config) else config
    channels, size = (getattr(looking, name, None) for name in ("num_channels", "image_size"))
    return ImageModel(looking.model_type, channels, size)


def load_image_processor(folder: Path, config: PretrainedConfig | None = None) -> Any:
    """A directory's image processor, which scales with Pillow wherever it runs: answers don't depend on the machine.

    Whatever transformers raises about the directory's files goes through.

    Raises:
        ConfigError: Pillow isn't installed.
        ValueError: it scales to absurd sizes, or is no image processor.
    """
    check_pillow()
    from transformers import AutoImageProcessor  # takes more with it than a device needs that reads texts
    from transformers.image_processing_utils import BaseImageProcessor

    processor = AutoImageProcessor.from_pretrained(
        folder, config=config, local_files_only=True, trust_remote_code=False, backend="pil"
    )
    if not isinstance(processor, BaseImageProcessor):
        raise ValueError(f"expected an image processor, found {type(processor).__name__}")
    check_sides(processor.to_dict())
    return processor


CLASSES: dict[TaskKind, Any] = {kind: getattr(transformers, form.model) for kind, form in FORMS.items()}
"""Task kind → the transformers class that runs it, but for models with a picture tower."""

_transformers_lock = threading.RLock()
"""Transformers' verbosity is the process's, and so is torch's default dtype, which it changes to build a module."""

_EXPERTS_OF_TENSOR = 4
"""Experts that are built for each value of a bundle at most: each has three weights of its own there."""

_MOST_TOKENS = 2**20
"""The context length of a model that states none, and the largest one that is believed."""

BASE = "base_model."
"""Canonical prefix of everything that tasks share; `PreTrainedModel.base_model` of any architecture."""


def class_of(kind: TaskKind, config: PretrainedConfig) -> Any:
    """The transformers class that runs a kind of tasks on a type of models."""
    with_pictures = FORMS[kind].picture_model
    return getattr(transformers, with_pictures) if with_pictures and has_picture_tower(config) else CLASSES[kind]


def has_picture_tower(config: PretrainedConfig) -> bool:
    """Whether a model reads pictures among its words."""
    return config.model_type in PICTURE_MODELS


def takes_patches(config: PretrainedConfig) -> bool:
    """Whether a model's pictures are runs of patches, whose places have rows and columns."""
    return config.model_type in PATCH_MODELS


def takes_tiles(config: PretrainedConfig) -> bool:
    """Whether a model's pictures are tiles between words."""
    return config.model_type in TILE_MODELS


def packs_tiles(config: PretrainedConfig) -> bool:
    """Whether a model puts the features of a picture's tiles together."""
    return config.model_type in PACKING_MODELS


def feature_layers(config: PretrainedConfig) -> tuple[int, ...]:
    """How many of the tower's layers each part of a picture's features has passed. Raises `ValueError` of too many."""
    if takes_patches(config) or takes_tiles(config):
        return (int(config.vision_config.num_hidden_layers),)
    stated, layers = config.vision_feature_layer, int(config.vision_config.num_hidden_layers)
    each = [stated] if isinstance(stated, int) else list(stated)
    if not each or not all(-layers - 1 <= number <= layers for number in each):
        expected = f"expected numbers of the {layers + 1} hidden states of the picture tower"
        raise ValueError(f"vision_feature_layer: {expected}, found {stated}")
    return tuple(number % (layers + 1) for number in each)


def read_config(bundle: Bundle) -> PretrainedConfig:
    """The bundle's checked configuration, without any task's labels. Raises `BundleFormatError` if it can't be used."""
    folder, name = model_dir(bundle), f"{MODEL}/config.json"
    check_config_class(name, _values(folder / "config.json"))
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if has_picture_tower(config):
            feature_layers(config)
    except Exception as error:
        raise BundleFormatError(name, "architecture", "one of transformers'", error) from error
    if (writer := later_writer(config)) is not None:
        found = f"{writer}; update transformers here, or compile with the version that is here"
        raise BundleFormatError(name, "transformers_version", f"one that {transformers.__version__} reads", found)
    return config


def _values(path: Path) -> Any:
    return json.loads(path.read_bytes()) if path.is_file() else {}


def read_generation(bundle: Bundle, config: PretrainedConfig) -> GenerationConfig | None:
    """The default generation settings of the bundle's decoders; None if it has none.

    Raises:
        BundleFormatError: they are damaged, not allowed, or pad with a token that the model lacks.
    """
    name = f"{MODEL}/{GENERATION}"
    if name not in bundle.manifest.files:
        return None
    check_model_file(bundle.path, bundle.manifest, name)
    settings = generation_settings(name, _values(bundle.path / name))
    words = getattr(config.get_text_config(), "vocab_size", None)
    if settings.pad_token_id is not None and words is not None and settings.pad_token_id >= words:
        raise BundleFormatError(name, "pad_token_id", f"one of the model's {words} words", settings.pad_token_id)
    try:
        return GenerationConfig(**settings.stated())
    except Exception as error:
        raise BundleFormatError(name, "content", "what transformers can read", error) from error


def set_generation(module: nn.Module, generation: GenerationConfig | None) -> None:
    """Give a module generation settings, if it generates and there are any."""
    if generation is not None and getattr(module, "generation_config", None) is not None:
        module.generation_config = copy.deepcopy(generation)


def empty_module(config: PretrainedConfig, task: TaskEntry, tensors: int = 2**12) -> nn.Module:
    """The task's transformers module in eval mode, its weights without memory; linear layers hold them as [out, in].

    Args:
        config: of the model.
        task: whose module it is.
        tensors: as many parameters as there are values for, or more.

    Raises:
        BundleFormatError: transformers can't build it, or it has far more parts, or computes more, than any such model.
    """
    module: nn.Module = module_of_kind(config, task.kind, task.classes, tensors)
    return module


def module_of_kind(
    config: PretrainedConfig, kind: TaskKind, classes: Sequence[str], tensors: int = 2**12
) -> PreTrainedModel:
    """The module of a kind of tasks for these classes. Arguments and errors as `empty_module`'s."""
    labelled = copy.deepcopy(config)
    if classes:
        labelled.id2label = dict(enumerate(classes))
        labelled.label2id = {name: number for number, name in enumerate(classes)}
        labelled.problem_type = None  # the model's directory may be of one with many labels for a text, or a number
    try:
        # Torch's modes and transformers' settings would stay half set; a module without memory is built at once.
        with uninterrupted, empty_on_meta(calls_for(tensors)), quiet_transformers():
            module: PreTrainedModel = class_of(kind, labelled).from_config(labelled, trust_remote_code=False)
        set_upright(module, _EXPERTS_OF_TENSOR * tensors)
    except Exception as error:
        raise BundleFormatError(f"{MODEL}/config.json", "architecture", f"one for {kind}", error) from error
    module.requires_grad_(False)
    module.eval()
    return module


def full_name(module: nn.Module, name: str) -> str:
    """A canonical parameter name as this module calls it."""
    prefix = str(getattr(module, "base_model_prefix", ""))
    return f"{prefix}.{name.removeprefix(BASE)}" if name.startswith(BASE) else name


def tokenizer(bundle: Bundle) -> Any:
    """The bundle's tokenizer, from its own files only. Raises `BundleFormatError` if it can't be read, or of images."""
    if bundle.takes_images:
        raise BundleFormatError(f"{MODEL}/", "tokenizer", "one", "none: the tasks read images")
    folder, config = model_dir(bundle), read_config(bundle)
    check_tokenizer_class(f"{MODEL}/tokenizer_config.json", _values(folder / "tokenizer_config.json"))
    check_tokenizer_class(f"{MODEL}/config.json", _values(folder / "config.json"))
    try:
        with panics_as_errors():
            tokenizer = AutoTokenizer.from_pretrained(
                folder, config=config, local_files_only=True, trust_remote_code=False
            )
            tokenizer.decode(tokenizer("a")["input_ids"])  # some of what is wrong with one shows only when it is used
        return tokenizer
    except Exception as error:
        raise BundleFormatError(f"{MODEL}/", "tokenizer", "one that transformers can read", error) from error


def context_length(module: nn.Module) -> int:
    """Tokens that a model can read, prompt and continuation together, as far as it says."""
    config: Any = module.config
    stated = getattr(config.get_text_config(), "max_position_embeddings", None) or _MOST_TOKENS
    positions = position_table(module)
    return int(min(stated, _MOST_TOKENS if positions is None else positions, _MOST_TOKENS))


def position_table(module: nn.Module) -> int | None:
    """Tokens that a table of positions has room for, if it begins behind its padding as RoBERTa's does; else None.

    The configuration of such a model counts the rows before the first position, too.
    """
    for name, part in module.named_modules():
        padding = getattr(part, "padding_idx", None)  # I-BERT's table is no `nn.Embedding`
        if "position" in name and padding is not None:
            return len(part.weight) - int(padding) - 1
    return None


def uniform_length(config: PretrainedConfig) -> int | None:
    """Tokens up to which a model embeds positions alike; None if it always does.

    A longer text changes how positions are embedded for all texts of its batch (``longrope``).
    """
    text_config = config.get_text_config()
    rope = getattr(text_config, "rope_parameters", None) or getattr(text_config, "rope_scaling", None) or {}
    if "longrope" not in (rope.get("rope_type"), rope.get("type")):
        return None
    # Where both say it, transformers goes by the configuration's own.
    name = "original_max_position_embeddings"
    length = getattr(text_config, name, None) or rope.get(name)
    return None if length is None else int(length)


def image_reader(bundle: Bundle) -> TransformersImageReader:
    """The bundle's image processor, from its own files only, with what the model expects of it.

    Raises:
        BundleFormatError: transformers can't read it, or the tasks read texts alone.
        ConfigError: Pillow isn't installed.
    """
    if not bundle.takes_images and bundle.pictures is None:
        raise BundleFormatError(f"{MODEL}/", "image processor", "one", "none: the tasks read texts")
    folder = model_dir(bundle)
    try:
        config = read_config(bundle)
        return TransformersImageReader(load_image_processor(folder, config), config)
    except (BundleFormatError, ConfigError):
        raise
    except Exception as error:
        raise BundleFormatError(f"{MODEL}/", "image processor", "one that transformers can read", error) from error


def input_reader(bundle: Bundle) -> Tokenizer | ImageReader:
    """What reads the tasks' inputs: the bundle's tokenizer, or its image reader."""
    if bundle.takes_images:
        return open_image_reader(bundle) or image_reader(bundle)
    return open_tokenizer(bundle)


def preprocessors(bundle: Bundle) -> list[Any]:
    """What transformers calls preprocessors: the bundle's tokenizer, its image processor, or both in this order.

    Errors are as above.
    """
    found = [] if bundle.takes_images else [tokenizer(bundle)]
    return found if bundle.pictures is None and found else [*found, image_reader(bundle).processor]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars of transformers' own, and no reports of what is checked here anyway; one thread at a time."""
    with acquired(_transformers_lock):
        level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        try:
            yield
        finally:
            transformers_logging.set_verbosity(level)
            if bars:
                transformers_logging.enable_progress_bar()
