"""``model/``: configuration and tokenizer, which transformers will read; nothing in it may run code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from weightpager.bundle.files.entry import check_file, read_checked
from weightpager.bundle.files.strict import read_parts
from weightpager.bundle.format.manifest import FORMS, Manifest
from weightpager.bundle.format.names import MODEL
from weightpager.bundle.model_settings import TokenizerFile, check_tokenizer_file, foreign_code, settings_of
from weightpager.bundle.reader import Bundle
from weightpager.bundle.settings import (
    GENERATION,
    TOKENIZER_FILE,
    check_choice,
    check_settings,
    generation_settings,
    is_settings,
    parse,
)
from weightpager.errors import BundleFormatError
from weightpager.graph import read_graph
from weightpager.graph.file import FEATURES, kind_of_file

_ALLOWED: dict[str, tuple[object, ...]] = {
    "chunk_size_feed_forward": (0,),
    "is_encoder_decoder": (None, False),
    "output_attentions": (None, False, True),
    "output_hidden_states": (None, False, True),
    "return_dict": (True,),
}
"""Settings with which a module can run; with other values it can be built, but its first forward fails."""


def model_dir(bundle: Bundle) -> Path:
    """Check every file in the model's directory but graphs, which `Bundle.graph` checks; its path."""
    for name in extra_files(bundle.path, bundle.manifest):
        raise unlisted(name)
    for name in model_files(bundle.manifest):
        if kind_of_file(name) is None:
            check_model_file(bundle.path, bundle.manifest, name)
    return bundle.path / MODEL


def model_files(manifest: Manifest) -> list[str]:
    """Names of the model's files, and of its configuration in any case: without one, transformers looks elsewhere."""
    return sorted({name for name in manifest.files if name.startswith(f"{MODEL}/")} | {f"{MODEL}/config.json"})


def extra_files(root: Path, manifest: Manifest) -> Iterator[str]:
    for path in sorted((root / MODEL).rglob("*")):
        name = path.relative_to(root).as_posix()
        # Not only ordinary files: transformers would open a FIFO, or find files behind a link to a directory.
        if name not in manifest.files and (path.is_symlink() or not path.is_dir()):
            yield name


def unlisted(name: str) -> BundleFormatError:
    return BundleFormatError(name, "file", "only files that the manifest lists", "an extra file; remove it")


def check_model_file(root: Path, manifest: Manifest, name: str) -> None:
    """Compare a file with its entry, and refuse settings that ask for what a bundle may not do."""
    entry = manifest.entry(name)
    kind = kind_of_file(name)
    if kind is not None:
        kinds: list[str] = [*FORMS, *([] if manifest.pictures is None else [FEATURES])]
        if kind not in kinds:
            raise BundleFormatError(name, "file", f"a graph of {', '.join(kinds)}", f"one of {kind[:40]!r}")
        read_graph(name, read_checked(root, name, entry), kind)
    elif name.endswith(".json"):
        _check_json(name, read_checked(root, name, entry))
    else:
        check_file(root, name, entry)


def _check_json(name: str, content: bytes) -> None:
    if name == f"{MODEL}/{TOKENIZER_FILE}":
        check_tokenizer_file(name, read_parts(name, TokenizerFile, content))
        return
    values = parse(name, content)
    if name == f"{MODEL}/{GENERATION}":
        generation_settings(name, values)
    elif is_settings(name):
        if (found := foreign_code(name, values)) is not None:
            setting, what = found
            raise BundleFormatError(name, setting.path, f"nothing that {what}", repr(setting.value)[:80])
        for each in settings_of(name, values):
            check_choice(name, each, _ALLOWED)
    check_settings(name, values)
