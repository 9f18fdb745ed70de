"""Changes of what a bundle's directory holds: files that are missing, more, or no ordinary files."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from random import Random

from benchmarks.fuzz.sealing import entry, rewrite_manifest

_EXTRA = (
    "model/tokenizer.model", "model/special_tokens_map.json", "model/added_tokens.json", "model/vocab.txt",
    "model/chat_template.jinja", "model/generation_config.json", "model/modeling_x.py", "model/sub/x.json",
    "model/chat_templates/x.jinja", "model/merges.txt", "x", "placement.safetensors", "pages-0001.safetensors",
    "permutations.safetensors", "model/\udcff", "model/a\nb",
)  # fmt: skip

_SPECIAL = ("fifo", "socket", "directory", "loop", "dangling", "outside", "zero", "null", "to directory", "empty")


def change(bundle: Path, random: Random) -> tuple[str, bool]:
    """Change the directory; what was done in words, and whether hashes were recomputed for it."""
    kind = random.choice(["missing", "extra", "special", "special", "special", "locked", "huge", "folder", "rename"])
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    path = random.choice(files)
    name = path.relative_to(bundle).as_posix()
    if kind == "extra":
        return _extra(bundle, random)
    if kind == "folder":
        return _folder(bundle, random), False
    if kind == "missing":
        path.unlink()
    elif kind == "locked":
        content = path.read_bytes()
        path.unlink()  # a mode belongs to all hard links
        path.write_bytes(content)
        path.chmod(0)
    elif kind == "rename":
        path.rename(path.with_name(path.name.upper()))
    elif kind == "huge":
        path.unlink()
        with path.open("wb") as file:
            file.truncate(1 << random.choice([32, 40, 42]))
    else:
        return _special(bundle, path, name, random)
    return f"{kind} {name}", False


def _special(bundle: Path, path: Path, name: str, random: Random) -> tuple[str, bool]:
    kind = random.choice(_SPECIAL)
    path.unlink()
    _make(path, kind)
    sealed = random.random() < 0.5
    if sealed:
        rewrite_sealed(bundle, name)
    return f"{kind} in place of {name}{', with an entry that fits' if sealed else ''}", sealed


def rewrite_sealed(bundle: Path, name: str) -> None:
    """Have the manifest say that a file is empty, as what is no ordinary file seems to be."""
    if not name.startswith("manifest."):
        rewrite_manifest(bundle, lambda manifest: manifest["files"].update({name: entry(b"")}))


def _extra(bundle: Path, random: Random) -> tuple[str, bool]:
    name, kind = random.choice(_EXTRA), random.choice([*_SPECIAL, "text", "text"])
    path = bundle / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(path):
        path.unlink()
    _make(path, kind)
    sealed = random.random() < 0.3 and "\udcff" not in name
    if sealed:
        content = b"{}" if kind == "text" else b""
        rewrite_manifest(bundle, lambda manifest: manifest["files"].update({name: entry(content)}))
    return f"extra {kind} {name!r}{', with an entry' if sealed else ''}", sealed


def _folder(bundle: Path, random: Random) -> str:
    path = random.choice([*sorted(path for path in bundle.rglob("*") if path.is_dir()), bundle / "tasks", bundle])
    kind = random.choice(["gone", *_SPECIAL])
    name = path.relative_to(bundle).as_posix()
    shutil.rmtree(path)
    if kind != "gone":
        _make(path, kind)
    return f"folder {name} is {kind}"


def _make(path: Path, kind: str) -> None:
    targets = {"loop": path.name, "dangling": "nowhere", "outside": "/etc/passwd", "zero": "/dev/zero"}
    targets |= {"null": "/dev/null", "to directory": "/etc"}
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        _socket(path)
    elif kind == "directory":
        path.mkdir()
    elif kind in targets:
        path.symlink_to(targets[kind])
    else:
        path.write_bytes(b"{}" if kind == "text" else b"")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        # A socket's path may have 107 bytes only.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            server.bind(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)
