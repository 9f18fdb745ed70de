"""How large the files of a bundle may be: what the manifest's counts justify, or more than any honest one needs."""

from __future__ import annotations

from weightpager.bundle.format import page_index, permutations
from weightpager.bundle.format.manifest import Manifest
from weightpager.bundle.format.names import MANIFEST, MODEL, tables_file
from weightpager.errors import BundleFormatError

_JSON = 16 * 2**20
"""A report, or a low-rank part's configuration."""

_CONFIGURATION = "config.json"
"""What names of configurations in ``model/`` end in."""

_VOCABULARY = 128 * 2**20
"""Of ``model/``'s other files; vocabularies of a quarter of a million tokens have 35 MB."""

_HEADER = 64 * 2**10
_TENSOR_HEADER = 256
"""Of a safetensors file: what its header takes, and what each tensor adds beside its name."""

_LETTER = 6
"""A letter of a name may be escaped in JSON, as ``\\u0000``."""

_INDEX_PAGE = 32 + 4 + 8
"""An id, a layer and a signature."""

_INT32 = 4

_LEAST_PARAMETERS = 4 * 2**30
_PARAMETERS = 64 * 4
"""Bytes of resident or private parameters for each paged weight's: experts may be resident, and tables of vocabularies
are much larger than the smallest models that look words up in them."""


def check_sizes(manifest: Manifest) -> None:
    """Refuse files larger than what the manifest's counts justify: all that is stated is read, and hashed.

    Raises:
        BundleFormatError: one is larger.
    """
    tables = _of_tables(manifest)
    most = {
        page_index.FILE: _HEADER + manifest.pages * _INDEX_PAGE,
        permutations.FILE: _of_permutations(manifest),
        **{tables_file(task.name): tables for task in manifest.tasks},
    }
    for name, entry in manifest.files.items():
        limit = most.get(name) or _of_other_file(manifest, name)
        if entry.bytes > limit:
            raise BundleFormatError(MANIFEST, f"files.{name}.bytes", f"at most {limit}", entry.bytes)


def _of_tables(manifest: Manifest) -> int:
    """Most bytes of one task's block tables, which may keep every block."""
    headers, entries = _HEADER, 0
    for weight in manifest.weights:
        grid = manifest.grid(weight)
        headers += 3 * (_TENSOR_HEADER + _LETTER * len(weight.name))
        entries += grid.rows + 1 + 2 * grid.count
    return headers + _INT32 * entries


def _of_permutations(manifest: Manifest) -> int:
    """Most bytes of the permutations: of paged weights' axes, and of as many that are resident."""
    axes = sum(weight.out_features + weight.in_features for weight in manifest.weights)
    return _JSON + 16 * _INT32 * axes


def _of_other_file(manifest: Manifest, name: str) -> int:
    """Most bytes of a file in ``model/``, a report, or parameters that are resident, private or low-rank."""
    if name.startswith(f"{MODEL}/") and not name.endswith(_CONFIGURATION):
        return _VOCABULARY
    if name.endswith(".json"):
        return _JSON
    return _LEAST_PARAMETERS + _PARAMETERS * sum(one.out_features * one.in_features for one in manifest.weights)
