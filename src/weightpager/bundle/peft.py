"""A LoRA adapter in a directory of PEFT's: hostile until it has been read whole, and fits a bundle's weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from weightpager.bundle.files.entry import hash_file
from weightpager.bundle.files.strict import parse
from weightpager.bundle.files.tensor_file import Header, StoredTensors, TensorInfo, stored_tensors
from weightpager.bundle.format.low_rank import Float32, LowRank
from weightpager.bundle.format.manifest import MOST_RANK, WeightEntry
from weightpager.bundle.format.names import BASE
from weightpager.errors import BundleFormatError, ConfigError, shortened, shown
from weightpager.page_dtype import ENCODINGS

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_IGNORED = frozenset({
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout",
    "lora_ga_config", "megatron_config", "megatron_core", "peft_version", "qalora_group_size", "revision",
    "runtime_config", "target_modules", "task_type",
})  # fmt: skip
"""Settings that say where parts are, which the tensors' names say, or how they were trained."""

_READ = frozenset({
    "alpha_pattern", "bias", "init_lora_weights", "lora_alpha", "peft_type", "r", "rank_pattern", "use_rslora",
})  # fmt: skip
_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""How parts may have begun. Others, such as PiSSA, also change the base's weights when they are loaded."""

_MOST_CONFIG, _MOST_ALPHA = 2**20, 2.0**20
_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])\.weight")
_PATTERN = re.compile(r"[A-Za-z0-9_.]+")
_FLOATS = ("float32", "float16", "bfloat16")
_NAMED = 120
"""Characters of a name that an error has."""


@dataclass(frozen=True)
class PeftAdapter:
    """A LoRA adapter as PEFT saved it.

    Attributes:
        parts: by canonical name of the weight; PEFT's scaling is folded in. Rows and columns are in the order of the
            model that the adapter was trained on.
    """

    parts: Mapping[str, LowRank]

    @property
    def rank(self) -> int:
        """The largest of its parts'."""
        return max(len(part.down) for part in self.parts.values())

    @classmethod
    def read(cls, folder: str | Path, weights: Iterable[WeightEntry]) -> PeftAdapter:
        """Read an adapter for a model's paged weights. Nothing is unpickled.

        Raises:
            ConfigError: it isn't there, or is anything but a plain LoRA in safetensors that fits the weights.
        """
        root = Path(folder)
        if not (root / CONFIG).is_file():
            raise ConfigError(f"{root}: expected a directory of PEFT's, found no {CONFIG} in it")
        if not (root / WEIGHTS).is_file():
            pickled = ", and a .bin isn't read: save it as safetensors" if list(root.glob("*.bin")) else ""
            raise ConfigError(f"{root}: expected {WEIGHTS}, found none{pickled}")
        try:
            return _read(root, {weight.name: weight for weight in weights})
        except (BundleFormatError, OSError) as error:
            raise ConfigError(f"{root}: {error}") from error


def _read(root: Path, weights: Mapping[str, WeightEntry]) -> PeftAdapter:
    with (root / CONFIG).open("rb") as file:
        text = file.read(_MOST_CONFIG + 1)
    if len(text) > _MOST_CONFIG:
        raise BundleFormatError(CONFIG, "document", f"at most {_MOST_CONFIG} bytes", "more")
    settings = _Settings(parse(CONFIG, text))
    size = (root / WEIGHTS).stat().st_size
    most = 2**24 + 4 * MOST_RANK * sum(weight.in_features + weight.out_features for weight in weights.values())
    if size > most:  # before all of it is hashed
        raise BundleFormatError(WEIGHTS, "file", f"at most {most} bytes, as the bundle's weights justify", size)
    with stored_tensors(root, WEIGHTS, hash_file(root / WEIGHTS), lambda header: _check(header, weights)) as stored:
        prefixes, parts = set(), {}
        for module, down, up in _pairs(stored.header):
            prefix, _, rest = module.partition(".")
            prefixes.add(prefix)
            rank = stored.header[down].shape[0]
            scale = np.float32(settings.scale(module, rank))
            parts[BASE + rest] = LowRank(_values(stored, down), _values(stored, up) * scale)
    if len(prefixes) != 1:
        raise BundleFormatError(WEIGHTS, "tensors", "parts of one model's weights", sorted(prefixes) or "none")
    return PeftAdapter(parts)


class _Settings:
    """What a configuration says of the parts' scaling; all else that would change them is refused."""

    def __init__(self, values: Any) -> None:
        if not isinstance(values, dict):
            raise BundleFormatError(CONFIG, "document", "a JSON object", shown(values))
        for name, wanted in (("peft_type", ("LORA",)), ("bias", ("none",)), ("init_lora_weights", _STARTS)):
            found = values.get(name, wanted[0])
            if not any(found is each or (found == each and isinstance(found, str)) for each in wanted):
                raise BundleFormatError(CONFIG, name, " or ".join(map(str, wanted)), shown(found))
        for name in sorted(values.keys() - _IGNORED - _READ):
            if values[name] not in (None, False, [], {}, ""):
                raise BundleFormatError(CONFIG, shortened(name, _NAMED), "no such setting", shown(values[name]))
        self._alpha = self._number("lora_alpha", values.get("lora_alpha", 8))
        self._root = values.get("use_rslora", False)
        if not isinstance(self._root, bool):
            raise BundleFormatError(CONFIG, "use_rslora", "true or false", shown(self._root))
        patterns = values.get("alpha_pattern") or {}
        if not isinstance(patterns, dict):
            raise BundleFormatError(CONFIG, "alpha_pattern", "modules and numbers", shown(patterns))
        self._patterns = {
            self._literal(pattern): self._number(f"alpha_pattern.{pattern[:_NAMED]}", alpha)
            for pattern, alpha in patterns.items()
        }

    def scale(self, module: str, rank: int) -> float:
        """What a part is multiplied by: alpha / r, or alpha / sqrt(r) of rank-stabilised LoRA (arXiv 2312.03732)."""
        named = (alpha for name, alpha in self._patterns.items() if f".{module}".endswith(f".{name}"))
        return next(named, self._alpha) / (math.sqrt(rank) if self._root else rank)

    @staticmethod
    def _number(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _MOST_ALPHA:
            raise BundleFormatError(CONFIG, name, f"a number up to {_MOST_ALPHA:g}", shown(value))
        return float(value)

    @staticmethod
    def _literal(pattern: str) -> str:
        """PEFT takes regular expressions, which may run for ever: names are taken, in which a dot is a dot."""
        if _PATTERN.fullmatch(pattern) is None:
            raise BundleFormatError(CONFIG, "alpha_pattern", "modules' names", shortened(pattern, _NAMED))
        return pattern


def _pairs(header: Header) -> Iterator[tuple[str, str, str]]:
    """Each module, and the names of its A and its B."""
    for name in header:
        found = _TENSOR.fullmatch(name)
        if found is None:
            raise BundleFormatError(
                WEIGHTS, shortened(name, _NAMED), "LoRA's A and B of linear layers", "another tensor"
            )
        other = "B" if found["part"] == "A" else "A"
        if f"base_model.model.{found['module']}.lora_{other}.weight" not in header:
            raise BundleFormatError(WEIGHTS, shortened(name, _NAMED), f"lora_{other} beside it", "none")
        if found["part"] == "A":
            yield found["module"], name, f"base_model.model.{found['module']}.lora_B.weight"


def _check(header: Header, weights: Mapping[str, WeightEntry]) -> None:
    """Refuse tensors that fit no paged weight, before any is read."""
    for module, down, up in _pairs(header):
        weight = weights.get(BASE + module.partition(".")[2])
        if weight is None:
            wanted = "a module whose weight the bundle has in pages"
            raise BundleFormatError(WEIGHTS, shortened(module, _NAMED), wanted, "another one")
        shape = header[down].shape
        rank = shape[0] if len(shape) == 2 else 0
        most = min(MOST_RANK, weight.in_features, weight.out_features)
        if not 1 <= rank <= most:
            raise BundleFormatError(WEIGHTS, shortened(down, _NAMED), f"a rank from 1 to {most}", header[down])
        for name, sizes in ((down, (rank, weight.in_features)), (up, (weight.out_features, rank))):
            if header[name].shape != sizes or header[name].dtype not in _FLOATS:
                stated = f"{' or '.join(_FLOATS)} {list(sizes)}"
                raise BundleFormatError(WEIGHTS, shortened(name, _NAMED), stated, header[name])


def _values(stored: StoredTensors, name: str) -> Float32:
    info: TensorInfo = stored.header[name]
    array = np.empty(info.shape, np.uint16 if info.dtype == "bfloat16" else info.dtype)
    stored.read(name, array.reshape(-1).view(np.uint8).data)
    values = ENCODINGS["bfloat16"].widen(array) if info.dtype == "bfloat16" else array.astype(np.float32)
    if not np.isfinite(values).all():
        raise BundleFormatError(WEIGHTS, shortened(name, _NAMED), "finite values", "others")
    return values
