"""How large the numbers of a configuration may be, by what they count; before anything is made of them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from weightpager.bundle.settings.walk import settings_of
from weightpager.errors import BundleFormatError


@dataclass(frozen=True)
class _Kind:
    """Settings whose numbers count the same sort of thing.

    Attributes:
        names: what is in their names.
        least: an integer may be this small,
        most: and this large.
    """

    names: re.Pattern[str]
    least: int
    most: int


def _kind(names: str, most: int, least: int = -(2**10)) -> _Kind:
    return _Kind(re.compile(names), least, most)


_KINDS = (
    _kind(r"^(max_position_embeddings|vocab_size)$", 2**24, least=1),
    _kind(r"^num_attention_heads$", 2**12, least=1),
    _kind(r"^num_hidden_layers$", 2**9, least=1),
    _kind(r"^num_labels$", 2**16, least=1),
    # The pixels of a side: tables of positions have its square, and tables of pairs of them its fourth power.
    _kind(r"image_size|img_size", 2**12),
    # Words and their numbers.
    _kind(r"vocab|token|_index$", 2**26),
    # Tokens that a model looks at.
    _kind(r"position|length|_len$|ctx|context|window|chunk|seq|bucket|distance|block_size", 2**24),
    # Not counts at all.
    _kind(r"theta|freq|_base$|seed|floor", 2**40),
    # Sides of matrices.
    _kind(r"(size|dim|width|channel)s?$", 2**18),
    _kind(r"expert", 2**15),
    _kind(r"head|centroid", 2**12),
    # What is built, or gone through, one by one.
    _kind(
        r"layer|block|stage|depth|group|network|function|hash|level|branch|cycle|pass|loop|repeat|step|iter|recur|"
        r"codebook|quantizer|conv",
        2**9,
    ),
    _kind(r"", 2**18),
)
"""The first kind whose pattern fits a name is its kind. No honest configuration needs larger numbers. Smaller ones may
still take too much together, which `weightpager.nn.empty_on_meta` finds when a module is built."""

_MOST_ITEMS = 2**10  # most values of a list, nested lists included: a configuration has at most one for each layer
_NESTED = 2**9  # the largest integer in a list of lists: it says how often its neighbours are repeated
_INTEGER = re.compile(
    r"^num_\w*(layers|heads|labels|experts|groups|channels|blocks)$|"
    r"(?!pruned_heads$)\w*(_size|_dim|_length|_len|_embeddings|_positions|_heads|_token_ids?|_window)$"
)
"""Settings that are integers, or lists of them, wherever they stand; transformers 4 wrote an object of pruned heads."""

_NUMBER = re.compile(r"^(num|n|max)_\w+$|\w*(_theta|_factor|_eps|_range|_base)$")
"""Settings that are numbers, or lists of them."""

_FLOATS = ("Infinity", "-Infinity")
"""What transformers writes for floats that JSON has no number for, in ``{"__float__": ...}``."""

_MOST_TEXT = 2**14

_MOST_SINUSOIDAL = 2**14


def check_bounds(name: str, values: dict[str, Any]) -> None:
    """Refuse numbers, lists and texts that no honest configuration has, at any depth.

    Args:
        name: of the file, for errors.
        values: the document.

    Raises:
        BundleFormatError: one is out of bounds, or no number where one is meant.
    """
    for setting in settings_of(name, values):
        kind = next(kind for kind in _KINDS if kind.names.search(setting.key))
        wanted = f"an integer of {kind.least} to {kind.most}"
        if not _fits(setting.value, kind) or (setting.key == "__float__" and setting.value not in _FLOATS):
            raise BundleFormatError(name, setting.path, wanted, repr(setting.value)[:80])
        for names, wanted, types in ((_INTEGER, "an integer", (int,)), (_NUMBER, "a number", (int, float))):
            if names.match(setting.key) and not _is_of(types, setting.value):
                raise BundleFormatError(name, setting.path, wanted, repr(setting.value)[:80])
        if _items(setting.value) > _MOST_ITEMS:
            raise BundleFormatError(name, setting.path, f"at most {_MOST_ITEMS} values", "more")
        if "sinusoid" in setting.key and setting.value:
            _check_sinusoidal(name, values)


def _fits(value: Any, kind: _Kind, lists: int = 0) -> bool:
    if isinstance(value, list):
        return bool(value or lists or kind.least < 1) and all(_fits(item, kind, lists + 1) for item in value)
    if isinstance(value, str):
        return len(value) <= _MOST_TEXT
    if isinstance(value, float):
        return not math.isnan(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return True
    return kind.least <= value <= (kind.most if lists < 2 else min(kind.most, _NESTED))


def _items(value: Any) -> int:
    return sum(1 + _items(item) for item in value) if isinstance(value, list) else 0


def _is_of(types: tuple[type, ...], value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_of(types, item) for item in value)
    tagged = float in types and isinstance(value, dict) and "__float__" in value
    return value is None or isinstance(value, types) or tagged


def _check_sinusoidal(name: str, values: dict[str, Any]) -> None:
    """Refuse long sinusoidal tables, which transformers computes row by row in Python."""
    for setting in settings_of(name, values):
        if "position" in setting.key and isinstance(setting.value, int) and setting.value > _MOST_SINUSOIDAL:
            raise BundleFormatError(name, setting.path, f"at most {_MOST_SINUSOIDAL} of sinusoidal ones", setting.value)
